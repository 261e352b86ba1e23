"""Is something growing? A line through one number of each round, with an interval, against a limit stated before.

Memory swings within a round, so a round counts once: by its mean; what is counted in pieces by its lowest, as what
leaks never goes back. Rounds follow each other, so their residuals may be alike: the interval is widened by the
autocorrelation ρ of neighbours, √((1 + ρ) / (1 − ρ)), where that is positive.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from benchmarks.soak.sample import Sample

HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What must not grow, and by how much an hour it may at most seem to."""

    name: str
    unit: str
    scale: float  # of the unit, in what a sample holds
    of_sample: Callable[[Sample], float]
    of_round: Callable[[Sequence[float]], float]
    limit: float  # an hour: in units, or with `is_share` of the mean
    is_share: bool


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


MEASURES = (
    Measure(
        name="resident memory",
        unit="MiB",
        scale=2.0**20,
        of_sample=lambda s: s.resident,
        of_round=_mean,
        limit=0.02,
        is_share=True,
    ),
    Measure(
        name="proportional memory",
        unit="MiB",
        scale=2.0**20,
        of_sample=lambda s: s.proportional,
        of_round=_mean,
        limit=0.02,
        is_share=True,
    ),
    Measure(
        name="Python's blocks",
        unit="thousands",
        scale=1e3,
        of_sample=lambda s: s.blocks,
        of_round=_mean,
        limit=0.02,
        is_share=True,
    ),
    Measure(
        name="bytes on disk",
        unit="MiB",
        scale=2.0**20,
        of_sample=lambda s: s.disk,
        of_round=min,
        limit=0.02,
        is_share=True,
    ),
    Measure(
        name="file handles",
        unit="",
        scale=1.0,
        of_sample=lambda s: s.handles,
        of_round=min,
        limit=1.0,
        is_share=False,
    ),
    Measure(
        name="threads",
        unit="",
        scale=1.0,
        of_sample=lambda s: s.threads,
        of_round=min,
        limit=1.0,
        is_share=False,
    ),
    Measure(
        name="temporary files and folders",
        unit="",
        scale=1.0,
        of_sample=lambda s: s.temporaries,
        of_round=min,
        limit=1.0,
        is_share=False,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A measure over the rounds after the warm-up; `low` to `high` is the 95 % interval of the slope."""

    name: str
    unit: str
    rounds: int
    mean: float
    highest: float
    slope: float  # units an hour
    low: float
    high: float
    limit: float  # units an hour

    @property
    def verdict(self) -> str:
        """`flat` where even the upper end stays below the limit, `grows` where zero is excluded, else `unclear`."""
        if self.high <= self.limit:
            return "flat"
        return "grows" if self.low > 0 else "unclear"


def trend(measure: Measure, samples: Sequence[Sample], warm_up: float) -> Trend:
    """Fit a measure over whole rounds that began after `warm_up` seconds.

    Raises:
        ValueError: fewer than three such rounds.
    """
    rounds = _whole_rounds(samples, warm_up)
    if len(rounds) < 3:
        raise ValueError(f"{len(rounds)} rounds after the warm-up of {warm_up:.0f} s; a trend needs 3: run longer")
    hours = np.array([np.mean([sample.seconds for sample in one]) for one in rounds]) / HOUR
    values = [[measure.of_sample(sample) / measure.scale for sample in one] for one in rounds]
    levels = np.array([measure.of_round(one) for one in values])
    slope, margin = _line(hours, levels)
    mean = float(levels.mean())
    return Trend(
        name=measure.name,
        unit=measure.unit,
        rounds=len(rounds),
        mean=mean,
        highest=max(map(max, values)),
        slope=slope,
        low=slope - margin,
        high=slope + margin,
        limit=measure.limit * mean if measure.is_share else measure.limit,
    )


def _whole_rounds(samples: Sequence[Sample], warm_up: float) -> list[list[Sample]]:
    """Samples by round, without rounds that began in the warm-up and without the last, which was broken off."""
    by_round: dict[int, list[Sample]] = {}
    for sample in samples:
        by_round.setdefault(sample.round, []).append(sample)
    whole = [by_round[number] for number in sorted(by_round)[:-1]]
    return [one for one in whole if one[0].seconds >= warm_up]


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of least squares, and half the width of its 95 % interval."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residuals = y - y.mean() - slope * centred
    freedom = len(x) - 2
    variance = float(residuals @ residuals) / freedom
    return slope, float(student.ppf(0.975, freedom)) * math.sqrt(variance / spread) * _widening(residuals)


def _widening(residuals: np.ndarray) -> float:
    total = float(residuals @ residuals)
    if total == 0.0:
        return 1.0
    alike = min(max(float(residuals[1:] @ residuals[:-1]) / total, 0.0), 0.9)
    return math.sqrt((1 + alike) / (1 - alike))
