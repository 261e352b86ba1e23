"""What curves of downstream distance say: where they rise most steeply, and how flat they begin.

    blow_up   length of the path at the middle of its steepest step of the Euclidean distance
    flatness  mean rise over the first tenth of the steps / steepest rise: near 0 a plateau with an edge, 1 a line
    end       distance at the last step

A group is all paths of one kind of start and one kind of target; its row has means with their standard errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gradsae_fast.records import Array


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


def steepest(curve: Curve) -> int:
    """Number of the steepest step, counted from 0: it leads from point n to point n + 1."""
    return int(np.argmax(np.diff(curve.distance_S)))


def blow_up(curve: Curve) -> float:
    """Length of the path at the middle of its steepest step."""
    return curve.step * (steepest(curve) + 0.5)


def flatness(curve: Curve) -> float:
    """Mean rise over the first tenth of the steps, as a share of the steepest rise."""
    rises = np.diff(curve.distance_S)
    first = max(1, len(rises) // 10)
    return float(rises[:first].mean() / rises.max()) if rises.max() > 0 else float("nan")


def curve_table(curves: Sequence[Curve]) -> pa.Table:
    """One row per point: path (number), start, target, document, position, n, length, distance, divergence."""
    sizes = [len(curve.distance_S) for curve in curves]
    columns: dict[str, pa.Array] = {"path": pa.array(np.repeat(np.arange(len(curves)), sizes))}
    for name in ("start", "target", "document", "position"):
        values = [getattr(curve, name) for curve in curves]
        columns[name] = pa.array([value for value, size in zip(values, sizes, strict=True) for _ in range(size)])
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
        "steepest_rise": [float(np.diff(curve.distance_S).max()) / curve.step for curve in group],
        "end_distance": [float(curve.distance_S[-1]) for curve in group],
        "end_divergence": [float(curve.divergence_S[-1]) for curve in group],
    }
    row: dict[str, float | int | str] = {"start": start, "target": target, "paths": len(group)}
    for name, values in numbers.items():
        row[name] = float(np.nanmean(values))
        spread = float(np.nanstd(values, ddof=1)) if len(values) > 1 else float("nan")
        row[f"{name}_error"] = spread / len(values) ** 0.5
    row["median_blow_up"] = float(np.median(numbers["blow_up"]))
    row["path_length"] = float(np.mean([curve.length for curve in group]))
    row["target_norm"] = float(np.mean([curve.target_norm for curve in group]))
    return row
