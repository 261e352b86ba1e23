"""Inline SVG from numbers that were counted before: axes, bars, points and lines.

Colours are classes of the page's stylesheet, so that a figure follows light and dark; nothing in it runs or loads.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from gradsae_fast.visible import cut

WIDTH, HEIGHT = 360, 240
WORDS = 120  # characters of a label or tooltip, at most
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 28, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range of numbers with its name and its ticks (value, text)."""

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Two axes; places are in the units of the view box."""

    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        """Return the place of a value of x."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        """Return the place of a value of y."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def bar(self, low: float, high: float, value: float, *, kind: str, title: str) -> Markup:
        """Return a bar from `low` to `high`, as high as `value`, with a tooltip."""
        left, right, top = self.across(low), self.across(high), self.up(value)
        width, height = max(right - left - 0.8, 0.4), self.up(self.y.low) - top
        return Markup(
            f'<rect class="{kind}" x="{left + 0.4:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{_written(title)}</title></rect>"
        )

    def dot(self, x: float, y: float, radius: float, *, kind: str, title: str) -> Markup:
        """Return a circle with a tooltip."""
        return Markup(
            f'<circle class="{kind}" cx="{self.across(x):.1f}" cy="{self.up(y):.1f}" r="{radius:.1f}">'
            f"<title>{_written(title)}</title></circle>"
        )

    def line(self, points: Iterable[tuple[float, float]], *, kind: str) -> Markup:
        """Return a line through points."""
        path = " ".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in points)
        return Markup(f'<polyline class="{kind}" points="{path}"/>')

    def text(self, x: float, y: float, words: str, *, anchor: str = "start") -> Markup:
        """Return words beside a place."""
        return Markup(
            f'<text class="note" x="{self.across(x):.1f}" y="{self.up(y):.1f}" text-anchor="{anchor}">'
            f"{_written(words)}</text>"
        )

    def draw(self, marks: Iterable[Markup], *, label: str) -> Markup:
        """Return the figure; `label` is what a screen reader says of it."""
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
            WIDTH, HEIGHT, _written(label), self._axes(), Markup("").join(marks)
        )

    def _axes(self) -> Markup:
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        parts = [Markup(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')]
        for value, words in self.y.ticks:
            y = self.up(value)
            parts.append(Markup(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'))
            parts.append(_label(_LEFT - 6, y + 3.5, words, "end"))
        for value, words in self.x.ticks:
            x = self.across(value)
            parts.append(_label(x, bottom + 15, words, "middle" if x < right - 14 else "end"))
        parts.append(_label((_LEFT + right) / 2, HEIGHT - 6, self.x.name, "middle", "name"))
        parts.append(_label(2, 11, self.y.name, "start", "name"))
        return Markup("").join(parts)


def _written(words: str) -> Markup:
    return escape(cut(words, WORDS))


def _label(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_written(words)}</text>')


def signed_bar(value: float, largest: float) -> Markup:
    """Return a small bar to the right of the middle for a positive value, to the left for a negative one."""
    length = 30 * min(1.0, abs(value) / largest) if largest > 0 else 0.0
    kind, x = ("up", 32.0) if value >= 0 else ("down", 32 - length)
    return Markup(
        '<svg class="bar" viewBox="0 0 64 10" aria-hidden="true"><path class="axis" d="M32 0V10"/>'
        f'<rect class="{kind}" x="{x:.1f}" y="2" width="{length:.1f}" height="6"/></svg>'
    )


def interval(mean: float, half_width: float, largest: float) -> Markup:
    """Return a dot with its interval on an axis from -largest to largest."""
    if not largest > 0:
        return Markup("")
    low, middle, high = (80 + 74 * (mean + step) / largest for step in (-half_width, 0, half_width))
    return Markup(
        '<svg class="interval" viewBox="0 0 160 14" aria-hidden="true"><path class="axis" d="M80 0V14"/>'
        f'<path class="whisker" d="M{low:.1f} 7H{high:.1f}"/>'
        f'<circle class="{"up" if mean >= 0 else "down"}" cx="{middle:.1f}" cy="7" r="3.5"/></svg>'
    )
