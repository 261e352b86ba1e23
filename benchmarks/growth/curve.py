"""A cost against a size, and the exponent of the power law through it.

The exponent is the slope of the least-squares line through (log size, log cost): 1 is linear. A constant (loading,
starting) pulls it down at small sizes, so the upper half of the range is fitted apart; that is the one that is judged.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LINEAR = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a series."""

    name: str
    unit: str
    sizes: tuple[int, ...]
    rounds: tuple[tuple[float, ...], ...]  # of each size, one amount a round
    excuse: str | None = None  # why it may grow faster than linearly: "attention", or "yardstick" where it is not ours

    @property
    def medians(self) -> tuple[float, ...]:
        """Of the rounds of each size."""
        return tuple(statistics.median(amounts) for amounts in self.rounds)

    @property
    def whole(self) -> float:
        """Exponent over all sizes."""
        return exponent(self.sizes, self.medians)

    @property
    def upper(self) -> float:
        """Exponent over the upper half of the range."""
        return exponent(*upper_half(self.sizes, self.medians))

    @property
    def upper_of_rounds(self) -> tuple[float, float]:
        """Least and largest exponent over the upper half that one round alone gives."""
        count = min(map(len, self.rounds))
        found = [exponent(*upper_half(self.sizes, [amounts[turn] for amounts in self.rounds])) for turn in range(count)]
        return min(found), max(found)

    @property
    def verdict(self) -> str:
        """Whether the cost is at most linear: yes, within noise, no, the excuse, or – where it is too small to fit."""
        if math.isnan(self.upper):
            return "–"
        if self.upper <= LINEAR:
            return "yes"
        if self.excuse is not None:
            return self.excuse
        return "within noise" if self.upper_of_rounds[0] <= LINEAR else "**no**"


def exponent(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """Slope of the line through the logarithms; NaN for fewer than two sizes, or an amount that is not positive.

    >>> round(exponent([1, 10, 100], [3, 30, 300]), 6)
    1.0
    """
    if len(sizes) < 2 or min(amounts) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(amounts), 1)[0])


def upper_half(sizes: Sequence[int], amounts: Sequence[float]) -> tuple[list[int], list[float]]:
    """The part from the geometric middle of the range on, at least two sizes.

    >>> upper_half([1, 10, 100, 1000], [1.0, 2.0, 3.0, 4.0])
    ([100, 1000], [3.0, 4.0])
    """
    middle = math.sqrt(min(sizes) * max(sizes))
    first = min(sum(size < middle for size in sizes), max(len(sizes) - 2, 0))
    return list(sizes[first:]), list(amounts[first:])
