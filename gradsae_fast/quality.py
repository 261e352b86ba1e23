"""How well an SAE stands for the site that it is at: mean L0, and the fraction of variance that it leaves unexplained.

Letters: N tokens, D width of the written site.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradsae_fast.records import Array


@dataclass(slots=True, kw_only=True)
class Tally:
    """Running sums over unmasked tokens, from which L0 and FVU follow."""

    num_tokens: int = 0
    num_active: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    sum_D: Array | None = None

    def add(self, written_ND: Tensor, reconstruction_ND: Tensor, num_active: int) -> None:
        written_ND = written_ND.double()
        self.num_tokens += len(written_ND)
        self.num_active += num_active
        self.squared_error += (written_ND - reconstruction_ND).square().sum().item()
        self.squared_norm += written_ND.square().sum().item()
        sum_D = written_ND.sum(0).cpu().numpy()
        self.sum_D = sum_D if self.sum_D is None else self.sum_D + sum_D

    @property
    def l0(self) -> float:
        """Mean number of active latents of a token."""
        return self.num_active / self.num_tokens if self.num_tokens else float("nan")

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained by the reconstruction."""
        if self.sum_D is None or self.num_tokens < 2:
            return float("nan")
        variance = self.squared_norm - float(np.square(self.sum_D).sum()) / self.num_tokens
        return self.squared_error / variance if variance > 0 else float("nan")
