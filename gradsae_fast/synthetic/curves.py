"""What curves of downstream distance say: where they rise most steeply, and how flat they begin.

    blow_up   length of the path at the middle of its steepest step of the Euclidean distance
    flatness  mean rise over the first tenth of the steps / steepest rise: near 0 a plateau with an edge, 1 a line
    end       distance at the last step

A curve that never rises, or is not finite, has neither of the first two: they are NaN. A group is all paths of one kind
of start and one kind of target; its row has means, over the paths that have the number, with their standard errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gradsae_fast.records import Array

_ROUNDING = 1e-6  # by which a path may seem longer than a sweep of the same length


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One path that was swept."""

    start: str  # kind of activation that it starts from
    target: str
    document: str
    position: int  # of the changed token, in its document
    length: float  # Euclidean distance from start to target
    start_norm: float
    target_norm: float
    step: float  # length of one step
    distance_S: Array  # float64
    divergence_S: Array  # float64, nats

    @property
    def is_cut(self) -> bool:
        """Whether the sweep ended before the target."""
        return self.length > self.step * (len(self.distance_S) - 1) * (1 + _ROUNDING)


def blow_up(curve: Curve) -> float:
    """Length of the path at the middle of its steepest step; NaN without a rise."""
    rises = _rises(curve)
    return curve.step * (int(np.argmax(rises)) + 0.5) if rises.max() > 0 else float("nan")


def mean_blow_up(curves: Sequence[Curve]) -> float:
    """Mean over the curves that have one; NaN where none has."""
    return _mean_and_error([blow_up(curve) for curve in curves])[0]


def flatness(curve: Curve) -> float:
    """Mean rise over the first tenth of the steps, as a share of the steepest rise; NaN without a rise."""
    rises = _rises(curve)
    first = max(1, len(rises) // 10)
    return float(rises[:first].mean() / rises.max()) if rises.max() > 0 else float("nan")


def curve_table(curves: Sequence[Curve]) -> pa.Table:
    """One row per point: path (number), what it is (start, target, document, position, path_length), and the point.

    A point has n, length (from the start; the target is at `path_length`), distance and divergence.
    """
    sizes = [len(curve.distance_S) for curve in curves]
    columns: dict[str, pa.Array] = {"path": pa.array(np.repeat(np.arange(len(curves)), sizes))}
    for name in ("start", "target", "document", "position", "length"):
        values = [getattr(curve, name) for curve in curves]
        repeated = [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
        columns["path_length" if name == "length" else name] = pa.array(repeated)
    n = np.concatenate([np.arange(size) for size in sizes])
    columns["n"] = pa.array(n)
    columns["length"] = pa.array(n * np.repeat([curve.step for curve in curves], sizes))
    columns["distance"] = pa.array(np.concatenate([curve.distance_S for curve in curves]))
    columns["divergence"] = pa.array(np.concatenate([curve.divergence_S for curve in curves]))
    return pa.table(columns)


def summary_table(curves: Sequence[Curve]) -> pa.Table:
    """One row per group, in the order in which groups first occur."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.start, curve.target), []).append(curve)
    return pa.Table.from_pylist([_row(start, target, group) for (start, target), group in groups.items()])


def _row(start: str, target: str, group: Sequence[Curve]) -> dict[str, float | int | str]:
    numbers = {
        "blow_up": [blow_up(curve) for curve in group],
        "flatness": [flatness(curve) for curve in group],
        "steepest_rise": [float(_rises(curve).max()) / curve.step for curve in group],
        "end_distance": [float(curve.distance_S[-1]) for curve in group],
        "end_divergence": [float(curve.divergence_S[-1]) for curve in group],
    }
    row: dict[str, float | int | str] = {"start": start, "target": target, "paths": len(group)}
    for name, values in numbers.items():
        row[name], row[f"{name}_error"] = _mean_and_error(values)
    found = [value for value in numbers["blow_up"] if np.isfinite(value)]
    row["median_blow_up"] = float(np.median(found)) if found else float("nan")
    row["path_length"] = float(np.mean([curve.length for curve in group]))
    row["cut"] = sum(curve.is_cut for curve in group)
    row["target_norm"] = float(np.mean([curve.target_norm for curve in group]))
    return row


def _rises(curve: Curve) -> Array:
    """Rise of the distance over every step, NaN throughout where the curve is not finite."""
    if not np.isfinite(curve.distance_S).all():
        return np.full(len(curve.distance_S) - 1, np.nan)
    return np.diff(curve.distance_S)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the finite values; NaN where there are too few."""
    finite = np.array([value for value in values if np.isfinite(value)])
    mean = float(finite.mean()) if len(finite) else float("nan")
    error = float(finite.std(ddof=1) / len(finite) ** 0.5) if len(finite) > 1 else float("nan")
    return mean, error
