"""The picture: one row for each series, seconds on the left and bytes on the right, both axes logarithmic."""

import math
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.growth.cost import SECONDS
from benchmarks.growth.curve import Curve
from benchmarks.growth.series import Series

_COLOURS = ("#0b6e99", "#c2571a", "#4c8c2b", "#8a4fbf", "#b59b00", "#777777", "#c2185b")
_LEFT, _WIDTH, _HEIGHT, _GAP, _ROW = 70, 340, 200, 120, 390


def to_svg(series: Sequence[Series]) -> str:
    """Curves of medians; a dotted line is linear growth."""
    width, height = 2 * (_LEFT + _WIDTH) + _GAP, _ROW * len(series) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, one in enumerate(series):
        of_bytes = [curve for curve in one.curves if "bytes" in curve.unit]
        panels = [("seconds", [curve for curve in one.curves if curve.unit == SECONDS]), ("bytes", of_bytes)]
        for column, (unit, curves) in enumerate(panels):
            drawn = [curve for curve in curves if min(curve.medians) > 0]
            left, top = _LEFT + column * (_WIDTH + _GAP), 30 + row * _ROW
            if drawn:
                parts += _panel(left, top, f"{one.name}: {unit}", one.across, drawn)
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: int, top: int, heading: str, across: str, curves: Sequence[Curve]) -> list[str]:
    sizes = curves[0].sizes
    amounts = [value for curve in curves for value in curve.medians]
    low, high = math.floor(math.log10(min(amounts))), math.ceil(math.log10(max(amounts)))
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def place(size: float, amount: float) -> tuple[float, float]:
        x = left + _WIDTH * (math.log10(size) - first) / ((last - first) or 1.0)
        return x, top + _HEIGHT * (1 - (math.log10(amount) - low) / ((high - low) or 1))

    parts = [f'<text x="{left}" y="{top - 8}" font-weight="bold">{escape(heading)}</text>']
    for power in range(low, high + 1):
        _, y = place(sizes[0], 10.0**power)
        parts.append(f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for size in sizes:
        x, _ = place(size, 10.0**low)
        parts.append(f'<text x="{x:.1f}" y="{top + _HEIGHT + 14}" text-anchor="middle">{_short(size)}</text>')
    parts.append(f'<text x="{left}" y="{top + _HEIGHT + 30}" fill="#555">across: {escape(across)}</text>')
    parts.append(_linear(place, sizes, 10.0**low, 10.0**high))
    for number, curve in enumerate(curves):
        parts += _line(curve, _COLOURS[number % len(_COLOURS)], place, left, top + _HEIGHT + 46 + 13 * number)
    return parts


def _linear(place: Callable[[float, float], tuple[float, float]], sizes: Sequence[int], low: float, high: float) -> str:
    """Linear growth through the middle of the panel, as far as it stays inside."""
    middle, amount = math.sqrt(sizes[0] * sizes[-1]), math.sqrt(low * high)
    reach = min(sizes[-1] / middle, high / amount)
    ends = [place(middle * factor, amount * factor) for factor in (1 / reach, reach)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in ends)
    return f'<path d="M{path}" stroke="#aaa" stroke-dasharray="2 4"/>'


def _line(
    curve: Curve, colour: str, place: Callable[[float, float], tuple[float, float]], left: int, legend: int
) -> list[str]:
    spots = [place(size, value) for size, value in zip(curve.sizes, curve.medians, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    slope = "" if math.isnan(curve.upper) else f": {curve.upper:.2f}"
    return [
        f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots),
        f'<text x="{left}" y="{legend}" fill="{colour}">{escape(curve.name)}{slope}</text>',
    ]


def _short(size: int) -> str:
    for factor, letter in ((1_000_000, "M"), (1_000, "k")):
        if size >= factor:
            return f"{size / factor:.3g}{letter}"
    return str(size)
