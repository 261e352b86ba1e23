"""How well stored influences agree with exact ablation: correlation, sign, and the slope of the calibration line.

Letters: N samples, B resamples, G groups of equal values; x is what the store says, y what exact ablation says.
"""

import numpy as np

from gradsae_fast.records import Array

RESAMPLES = 2000


def pearson(x_N: Array, y_N: Array) -> float | None:
    """Pearson's correlation; None for fewer than 2 samples, or where one side does not vary."""
    if not (_varies(x_N) and _varies(y_N)):
        return None
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return float((x_N * y_N).sum() / np.sqrt(np.square(x_N).sum() * np.square(y_N).sum()))


def spearman(x_N: Array, y_N: Array) -> float | None:
    """Spearman's rank correlation, ties given their average rank; None as in `pearson`."""
    return pearson(average_ranks(x_N), average_ranks(y_N))


def average_ranks(x_N: Array) -> Array:
    """Rank of each value, counted from 1, float64 [N]; equal values share the mean of their ranks.

    >>> average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist()
    [3.5, 1.0, 3.5, 2.0]
    """
    _, group_N, size_G = np.unique(x_N, return_inverse=True, return_counts=True)
    last_G = np.cumsum(size_G)
    return (last_G - (size_G - 1) / 2)[group_N]


def sign_agreement(x_N: Array, y_N: Array) -> float | None:
    """Share of samples with equal signs; samples that are exactly 0 on both sides are left out. None without any."""
    told_N = (x_N != 0) | (y_N != 0)
    return float((np.sign(x_N) == np.sign(y_N))[told_N].mean()) if told_N.any() else None


def slope(x_N: Array, y_N: Array) -> float | None:
    """Slope of the least-squares line of y on x, intercept free; None where x does not vary."""
    if not _varies(x_N):
        return None
    x_N = x_N - x_N.mean()
    return float((x_N * y_N).sum() / np.square(x_N).sum())


def slope_interval(x_N: Array, y_N: Array, seed: int) -> tuple[float, float] | None:
    """The central 95 % of the slopes of resamples, drawn with replacement; None where no resample has a slope."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(x_N), len(x_N)) for _ in range(RESAMPLES if len(x_N) else 0))
    slope_B = [found for draw_N in draws if (found := slope(x_N[draw_N], y_N[draw_N])) is not None]
    if not slope_B:
        return None
    low, high = np.quantile(slope_B, [0.025, 0.975])
    return float(low), float(high)


def _varies(x_N: Array) -> bool:
    """Asked of the values themselves: deviations of equal values from their mean need not round to 0."""
    return len(x_N) > 0 and bool((x_N != x_N[0]).any())
