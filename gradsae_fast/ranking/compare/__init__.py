"""Two stores over one corpus: two SAEs, layers, checkpoints or methods, latent by latent."""

from gradsae_fast.ranking.compare.stores import compare_stores

__all__ = ["compare_stores"]
