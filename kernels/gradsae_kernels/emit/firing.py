"""When a pre-activation counts as firing: what the emitting kernels test, and nothing about why.

Letters: N tokens, C latents.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

from torch import Tensor


class Rule(IntEnum):
    """How u = x·w + start is compared; every comparison is strict, and NaN fires so that it is seen."""

    FOLDED = 0  # u > 0: the threshold is in the start already, as are slack and bar where they are given
    ABOVE = 1  # u > above
    TWO_SIDED = 2  # u > above or u < below
    BAR = 3  # u > bar of the token
    MAGNITUDE = 4  # |u| > bar of the token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Firing:
    """A rule and what it needs, fp32. With slack, u may miss by `slack_N[n] * slack_C[c]` and still fire."""

    rule: Rule
    start_C: Tensor
    above_C: Tensor | None = None
    below_C: Tensor | None = None
    bar_N: Tensor | None = None
    slack_N: Tensor | None = None
    slack_C: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order in which the kernels take them."""
        return self.start_C, self.above_C, self.below_C, self.bar_N, self.slack_N, self.slack_C

    def of_latents(self, first: int, stop: int) -> "Firing":
        """The same for latents first:stop."""

        def part(vector_C: Tensor | None) -> Tensor | None:
            return None if vector_C is None else vector_C[first:stop]

        return replace(
            self,
            start_C=self.start_C[first:stop],
            above_C=part(self.above_C),
            below_C=part(self.below_C),
            slack_C=part(self.slack_C),
        )
