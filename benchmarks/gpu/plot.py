"""One picture of the table: every measured variant's ratio to the bare product, a panel for each shape."""

import importlib
from itertools import groupby
from pathlib import Path

from benchmarks.gpu.row import Row, Status


def draw(rows: list[Row], path: Path) -> str:
    """Write a PNG if matplotlib is there; the sentence for the page in either case."""
    measured = [row for row in rows if row.status is Status.MEASURED and row.ratio is not None]
    if not measured:
        return "not made: nothing was measured"
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        return 'not made: matplotlib is not installed (pip install "gradsae-fast[bench]")'
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    panels = [(shape, list(group)) for shape, group in groupby(measured, key=lambda row: row.shape)]
    heights = [len(group) + 2 for _, group in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.22 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (shape, group) in zip(axes[:, 0], panels, strict=True):
        names = [f"{row.operator}: {row.variant}" for row in group]
        axis.barh(names, [row.ratio for row in group], height=0.7)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.invert_yaxis()
        axis.set_title(f"{shape}: time as a ratio to the bare product (logarithmic)", fontsize=8, loc="left")
        axis.tick_params(labelsize=6)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path.name
