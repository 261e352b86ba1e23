"""The rule that decides which latents are active and with what value; letters: C latents."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ThresholdRule:
    """Active iff u = x·w + bias is above `above` (or below `below`); value scale * u + offset where it is positive.

    `below` excludes `scale` and `offset`; those two come together. Without them no threshold is below zero: relu makes
    zeros there, and zeros are inactive. All are contiguous fp32 [C].
    """

    bias_C: Tensor
    above_C: Tensor
    below_C: Tensor | None
    scale_C: Tensor | None
    offset_C: Tensor | None

    @classmethod
    def of(
        cls,
        bias_C: Tensor,
        threshold_C: Tensor,
        negative_threshold_C: Tensor | None,
        scale_C: Tensor | None,
        offset_C: Tensor | None,
    ) -> Self:
        """Bring the arguments of `encode_threshold` to fp32 and fill in the scale or offset that is missing."""
        if scale_C is not None or offset_C is not None:
            scale_C = torch.ones_like(bias_C) if scale_C is None else scale_C
            offset_C = torch.zeros_like(bias_C) if offset_C is None else offset_C
        elif negative_threshold_C is None:
            threshold_C = threshold_C.clamp(min=0)
        below_C = None if negative_threshold_C is None else -negative_threshold_C
        return cls(
            bias_C=_plain(bias_C),
            above_C=_plain(threshold_C),
            below_C=None if below_C is None else _plain(below_C),
            scale_C=None if scale_C is None else _plain(scale_C),
            offset_C=None if offset_C is None else _plain(offset_C),
        )

    def values(self, u: Tensor, latent: Tensor) -> Tensor:
        """Values of pre-activations that fire, u [nnz] of latents [nnz]; zero where they are inactive after all."""
        if self.scale_C is not None and self.offset_C is not None:
            u = self.scale_C[latent] * u + self.offset_C[latent]
        return u if self.below_C is not None else u.relu()

    def fires(self, u: Tensor, latent: Tensor | slice) -> Tensor:
        """Whether pre-activations u [..., T] of T latents fire; NaN does, so that it is seen."""
        fires = ~(u <= self.above_C[latent])
        return fires if self.below_C is None else fires | (u < self.below_C[latent])


def _plain(vector_C: Tensor) -> Tensor:
    return vector_C.detach().to(torch.float32).contiguous()
