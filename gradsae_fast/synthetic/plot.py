"""Mean curves as an SVG, in two panels: by kind of target from real starts, and by kind of start to real targets."""

from collections.abc import Sequence

import numpy as np

from gradsae_fast.records import Array
from gradsae_fast.synthetic.curves import Curve, mean_blow_up

_COLOURS = {
    "real": "#1b1b1b",
    "reconstruction": "#1f5fa8",
    "structured": "#2f8f4e",
    "bag": "#b3541e",
    "gaussian": "#8a4fb0",
}
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 240, 60, 50, 90


def to_svg(curves: Sequence[Curve], title: str) -> str:
    """The plot; a dot marks the mean blow-up of a group. Curves that are not finite are left out."""
    curves = [curve for curve in curves if np.isfinite(curve.distance_S).all()]
    panels = [
        ("from real starts to targets that are", "target", [curve for curve in curves if curve.start == "real"]),
        ("to real targets from starts that are", "start", [curve for curve in curves if curve.target == "real"]),
    ]
    width = _LEFT + 2 * _WIDTH + _GAP + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_TOP + _HEIGHT + 150}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{_TOP + _HEIGHT + 150}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{title}</text>',
    ]
    groups = [group for _, name, chosen in panels for group in _groups(chosen, name).values()]
    top = max((float(_mean(group).max()) for group in groups), default=0.0) or 1.0
    for number, (heading, name, chosen) in enumerate(panels):
        parts += _panel(_LEFT + number * (_WIDTH + _GAP), heading, _groups(chosen, name), top)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, heading: str, groups: dict[str, list[Curve]], top: float) -> list[str]:
    reaches = (curve.step * (len(curve.distance_S) - 1) for group in groups.values() for curve in group)
    reach = max(reaches, default=1.0)
    bottom = _TOP + _HEIGHT
    parts = [f'<text x="{left}" y="{_TOP - 10}">{heading}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - _HEIGHT * share
        parts.append(f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
        x = left + _WIDTH * share
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{reach * share:.3g}</text>')
    parts.append(
        f'<text x="{left}" y="{bottom + 36}">across: length of the path; up: distance of the last layer</text>'
    )
    for number, (kind, group) in enumerate(groups.items()):
        parts += _line(left, kind, group, reach, top)
        y = bottom + 56 + 16 * number
        colour = _COLOURS.get(kind, "#777")
        mean = mean_blow_up(group)
        found = f"mean blow-up {mean:.3g}" if np.isfinite(mean) else "no blow-up"
        parts.append(f'<path d="M{left} {y}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 32}" y="{y + 4}">{kind}: {len(group)} paths, {found}</text>')
    return parts


def _line(left: int, kind: str, group: list[Curve], reach: float, top: float) -> list[str]:
    mean_S, step = _mean(group), group[0].step
    colour = _COLOURS.get(kind, "#777")

    def place(length: float, distance: float) -> tuple[float, float]:
        return left + _WIDTH * length / reach, _TOP + _HEIGHT * (1 - distance / top)

    points = "L".join("{:.1f} {:.1f}".format(*place(n * step, value)) for n, value in enumerate(mean_S.tolist()))
    line = f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    mean = mean_blow_up(group)
    if not np.isfinite(mean):
        return [line]
    x, y = place(mean, float(np.interp(mean, step * np.arange(len(mean_S)), mean_S)))
    return [line, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>']


def _mean(group: Sequence[Curve]) -> Array:
    mean_S: Array = np.mean([curve.distance_S for curve in group], axis=0)
    return mean_S


def _groups(curves: Sequence[Curve], name: str) -> dict[str, list[Curve]]:
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(getattr(curve, name), []).append(curve)
    return groups
