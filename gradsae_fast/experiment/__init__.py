"""The experiments of the GradSAE paper: mask or exchange selected latents while a model answers questions.

`masking` and `steering` are the two experiments; `selection` and `metrics` are plain numpy and Python.
"""
