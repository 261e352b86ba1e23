"""How well an SAE stands for the site that it is at: mean L0, and the fraction of variance that it leaves unexplained.

L0 is counted on all tokens. FVU may be measured on an even sample: a run that keeps the error term needs no decoding
but for it.

Letters: S sampled tokens, D width of the written site.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradsae_fast.records import Array

SAMPLE_TOKENS = 1024  # of a batch, at least, where it has so many


def even_sample(tokens_N: Array) -> Array:
    """`SAMPLE_TOKENS` of the tokens or up to twice as many, at even distances; all where there are fewer."""
    return tokens_N[:: max(1, len(tokens_N) // SAMPLE_TOKENS)]


@dataclass(slots=True, kw_only=True)
class Tally:
    """Running sums over unmasked tokens, from which L0 and FVU follow."""

    num_tokens: int = 0
    num_active: int = 0
    num_sampled: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    sum_D: Array | None = None

    def count(self, num_tokens: int, num_active: int) -> None:
        """Add tokens and their active latents."""
        self.num_tokens += num_tokens
        self.num_active += num_active

    def compare(self, written_SD: Tensor, reconstruction_SD: Tensor) -> None:
        """Add sampled tokens: what is at the site, and what the SAE makes of it."""
        written_SD = written_SD.double()
        self.num_sampled += len(written_SD)
        self.squared_error += (written_SD - reconstruction_SD).square().sum().item()
        self.squared_norm += written_SD.square().sum().item()
        sum_D = written_SD.sum(0).cpu().numpy()
        self.sum_D = sum_D if self.sum_D is None else self.sum_D + sum_D

    def add(self, other: "Tally") -> None:
        """Add the sums over other tokens, at the same site."""
        self.num_tokens += other.num_tokens
        self.num_active += other.num_active
        self.num_sampled += other.num_sampled
        self.squared_error += other.squared_error
        self.squared_norm += other.squared_norm
        if other.sum_D is not None:
            self.sum_D = other.sum_D if self.sum_D is None else self.sum_D + other.sum_D

    @property
    def l0(self) -> float:
        """Mean number of active latents of a token."""
        return self.num_active / self.num_tokens if self.num_tokens else float("nan")

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained by the reconstruction."""
        if self.sum_D is None or self.num_sampled < 2:
            return float("nan")
        variance = self.squared_norm - float(np.square(self.sum_D).sum()) / self.num_sampled
        return self.squared_error / variance if variance > 0 else float("nan")
