"""The page beside the numbers."""

import math
from collections.abc import Sequence

from benchmarks.growth.cost import PEAK, SECONDS
from benchmarks.growth.curve import LINEAR, Curve
from benchmarks.growth.series import Series

_MEBIBYTE = 2**20


def page(series: Sequence[Series], machine: str, date: str, plot: str) -> str:
    """Tables of medians, exponents and verdicts, as Markdown."""
    lines = [
        f"# How costs grow: {date}",
        "",
        f"{machine}. Every size in a process of its own; medians over rounds, sizes in turn.",
        "The exponent is the slope of log cost over log size: of all sizes, and of the upper half of the range (with",
        f"what single rounds give). At most linear: the upper exponent is at most {LINEAR}; `within noise`: not the",
        "median's, but that of at least one round; `attention` marks lines that contain the model's own attention,",
        "`yardstick` what is not ours, `–` costs too small to fit. CPU seconds are those of all threads; where they",
        "grow at most linearly and seconds do not, other work kept the machine or its disk busy.",
        "",
        f"![curves]({plot})",
    ]
    for one in series:
        lines += ["", *_table(one)]
    return "\n".join([*lines, ""])


def _table(series: Series) -> list[str]:
    sizes = series.curves[0].sizes
    lines = [
        f"## {series.name[0].upper()}{series.name[1:]}",
        "",
        f"{series.setting} Across: {series.across}.",
        "",
        "| | " + " | ".join(f"{size:,}" for size in sizes) + " | exponent | upper half | at most linear |",
        "|---|" + "---|" * (len(sizes) + 3),
    ]
    return lines + [_row(curve) for curve in series.curves]


def _row(curve: Curve) -> str:
    cells = [_amount(curve, value) for value in curve.medians]
    low, high = curve.upper_of_rounds
    spread = f" ({low:.2f} to {high:.2f})" if low < high else ""
    fits = ["–", "–"] if math.isnan(curve.upper) else [_exponent(curve.whole), f"**{curve.upper:.2f}**{spread}"]
    return f"| {_label(curve)} | " + " | ".join([*cells, *fits, curve.verdict]) + " |"


def _label(curve: Curve) -> str:
    units = {SECONDS: " [s]", PEAK: ": peak memory above the start [MiB]", "bytes on disk": ": bytes on disk [MiB]"}
    return curve.name + units.get(curve.unit, f": {curve.unit}")


def _exponent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _amount(curve: Curve, value: float) -> str:
    return f"{value / _MEBIBYTE:.1f}" if "bytes" in curve.unit else f"{value:.3g}"
