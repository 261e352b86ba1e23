"""Exact effects in a store: what a latent does to a whole document, measured by running the network without it.

`exact_dense` measures the latents that fire nearly everywhere, where the first order is least to be trusted, and keeps
the effects beside the scores. `effects` is the measurement itself, which a certificate uses too.
"""

from gradsae_fast.exact.dense import ExactReport, dense_latents, exact_dense

__all__ = ["ExactReport", "dense_latents", "exact_dense"]
