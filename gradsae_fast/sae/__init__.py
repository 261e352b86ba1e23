"""Sparse autoencoders: every supported file becomes one canonical SAE at load.

load.py       a path or a hub id in, a canonical SAE out
canonical.py  the SAE that everything else works on, and its input normalisation
temporal.py   what a temporal SAE predicts from earlier tokens, before it encodes the rest
reference.py  the oracle: dense, slow, obvious, differentiable
fold.py       from stored weights to canonical weights, exactly once
weights.py    weight files: reading, checking, digest
hub.py        fetching from the Hugging Face hub
formats/      one file per published format
"""
