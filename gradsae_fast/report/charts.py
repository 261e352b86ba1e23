"""The figures of an audit: what is counted, on which axes, and what a screen reader says of them."""

import math
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from gradsae_fast.counts import counted
from gradsae_fast.records import Array
from gradsae_fast.report.histogram import Histogram
from gradsae_fast.report.numbers import count, number, percent, short, signed
from gradsae_fast.report.subject import DENSE
from gradsae_fast.report.svg import Axis, Frame

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CELLS = 44, 44  # of the scatter, across and up: at most 1,936 marks, in practice far fewer
_ON_THE_LINE = 1e-9  # which keeps the sign
_SPAN = 6  # decades of influence on either side of zero


def density_chart(frequency: Array) -> Markup:
    """Draw how many latents fire how often, by log10 of the share of counted tokens."""
    decade = np.log10(frequency)
    low = min(-1, math.floor(decade.min()))
    edges = np.linspace(low, 0, max(10, min(40, -low * 8)) + 1)
    counts, _ = np.histogram(np.clip(decade, low, 0), edges)
    x = _decades("share of counted tokens on which a latent fires", low, 0, as_percent=True)
    frame = Frame(x=x, y=_counts("latents", int(counts.max())))
    dense = math.log10(DENSE)
    bars = [
        frame.bar(a, b, n, kind="plain", title=f"{percent(10**a)} to {percent(10**b)}: {counted(n, 'latent')}")
        for a, b, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        if n
    ]
    limit = [
        frame.line([(dense, frame.y.low), (dense, frame.y.high)], kind="limit"),
        frame.text(dense - 0.03, frame.y.high * 0.97, "dense", anchor="end"),
    ]
    return frame.draw([*bars, *limit], label=f"Histogram of the firing rates of {counted(len(frequency), 'latent')}.")


def scatter_chart(activation: Array, influence: Array, unit: str) -> tuple[Markup, int]:
    """Draw mean influence against |mean activation| of every latent; also return how many are exactly 0 in one.

    Influence is on a log scale that is mirrored at zero: above it latents that raise, below it latents that lower. What
    is more than `_SPAN` decades below the largest lies on the line in the middle.
    """
    shown = (activation != 0) & (influence != 0) & np.isfinite(activation) & np.isfinite(influence)
    if not shown.any():
        return Markup(""), len(shown)
    x_L, y_L = np.log10(np.abs(activation[shown])), np.log10(np.abs(influence[shown]))
    x_low, x_high = _whole(x_L)
    y_low, y_high = _whole(y_L)
    y_low = max(y_low, y_high - _SPAN)
    up_L = np.sign(influence[shown]) * np.maximum(y_L - y_low, _ON_THE_LINE)
    y = _mirrored(f"mean influence [{unit}]", y_low, y_high)
    frame = Frame(x=_decades("mean activation", x_low, x_high), y=y)
    cells, x_edges, y_edges = np.histogram2d(x_L, up_L, _CELLS, ((x_low, x_high), (y.low, y.high)))
    marks = [frame.line([(x_low, 0), (x_high, 0)], kind="axis")]
    for i, j in np.argwhere(cells).tolist():
        n, up = int(cells[i, j]), float(y_edges[j] + y_edges[j + 1]) / 2
        kind, about = "up" if up > 0 else "down", signed(math.copysign(10 ** (abs(up) + y_low), up))
        title = f"{counted(n, 'latent')}, mean influence about {about}"
        marks.append(frame.dot((x_edges[i] + x_edges[i + 1]) / 2, up, 1.2 + math.log10(n), kind=kind, title=title))
    label = (
        f"Scatter plot of influence against activation of {counted(int(shown.sum()), 'latent')}, both on log scales."
    )
    return frame.draw(marks, label=label), int((~shown).sum())


def share_chart(absolute: Array) -> tuple[Markup, list[tuple[int, float]]]:
    """Draw the share of the k largest latents in the total |influence|; also return it at some k."""
    total = absolute.sum()
    if not total > 0:
        return Markup(""), []
    cumulative = np.cumsum(np.sort(absolute)[::-1]) / total
    n = len(cumulative)
    at = np.unique(np.round(np.geomspace(1, n, 120)).astype(int))
    high = max(1, math.ceil(math.log10(n)))
    ticks = tuple((float(d), count(10**d)) for d in range(high + 1))
    x = Axis(name="latents, largest first", low=0, high=high, ticks=ticks)
    y = Axis(name="share of total |influence|", low=0, high=1, ticks=tuple((p / 4, f"{p * 25} %") for p in range(5)))
    frame = Frame(x=x, y=y)
    points = [(math.log10(k), float(cumulative[k - 1])) for k in at.tolist()]
    half = int(np.searchsorted(cumulative, 0.5)) + 1
    marks = [
        frame.line(points, kind="curve"),
        frame.dot(
            math.log10(half), float(cumulative[half - 1]), 3.5, kind="plain", title=f"half: {counted(half, 'latent')}"
        ),
        frame.text(math.log10(half) + 0.06 * high / 3, 0.42, f"half is held by {count(half)}"),
    ]
    shares = [(k, float(cumulative[k - 1])) for k in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000) if k <= n]
    return frame.draw(marks, label=f"{count(half)} of {counted(n, 'latent')} hold half of the total influence."), shares


def value_chart(histogram: Histogram, *, name: str, is_signed: bool) -> Markup:
    """Draw one latent's histogram; heights are log10 of 1 + the count."""
    edges, counts = histogram.edges.tolist(), histogram.counts.tolist()
    frame = Frame(x=_values(name, edges[0], edges[-1]), y=_log_counts("tokens", max(counts)))
    write = signed if is_signed else number
    marks = [
        frame.bar(
            low,
            high,
            math.log10(1 + n),
            kind=("up" if low >= 0 else "down") if is_signed else "plain",
            title=f"{write(low)} to {write(high)}: {counted(n, 'token')}",
        )
        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)
        if n
    ]
    return frame.draw(marks, label=f"Histogram of the {name} on {counted(sum(counts), 'token')}.")


def rows_of(histogram: Histogram) -> list[Mapping[str, object]]:
    """Return a histogram as the rows of a table, for those who cannot see it; empty bins left out."""
    edges, counts = histogram.edges.tolist(), histogram.counts.tolist()
    return [
        {"low": low, "high": high, "count": n} for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True) if n
    ]


def _whole(values: Array) -> tuple[int, int]:
    low, high = math.floor(values.min()), math.ceil(values.max())
    return low, max(high, low + 1)


def _decades(name: str, low: int, high: int, *, as_percent: bool = False) -> Axis:
    step = max(1, math.ceil((high - low) / 5))
    write = _percent_power if as_percent else _power
    return Axis(name=name, low=low, high=high, ticks=tuple((d, write(d)) for d in range(high, low - 1, -step)))


def _mirrored(name: str, low: int, high: int) -> Axis:
    """The axis of log10 |value| - low, with the value's sign."""
    reach = high - low
    step = max(1, math.ceil(reach / 3))
    above = [(float(d - low), f"+{_power(d)}") for d in range(high, low, -step)]
    below = [(-up, text.replace("+", "−", 1)) for up, text in above]
    return Axis(name=name, low=-reach, high=reach, ticks=(*below, (0.0, "0"), *above))


def _percent_power(decade: int) -> str:
    return f"{_power(decade + 2)} %"


def _power(decade: int) -> str:
    """Write a power of ten.

    >>> _power(2), _power(-6)
    ('100', '10⁻⁶')
    """
    return short(10.0**decade) if abs(decade) < 3 else "10" + str(decade).translate(_RAISED)


def _counts(name: str, largest: int) -> Axis:
    step = _step(largest / 4)
    top = max(1, math.ceil(largest / step)) * step
    ticks = tuple((i * step, short(i * step)) for i in range(round(top / step) + 1) if (i * step).is_integer())
    return Axis(name=name, low=0, high=top, ticks=ticks)


def _log_counts(name: str, largest: int) -> Axis:
    decades = range(math.floor(math.log10(1 + largest)) + 1)
    step = max(1, math.ceil(len(decades) / 5))
    ticks = ((0.0, "0"), *((math.log10(1 + 10**d), count(10**d)) for d in decades[::step]))
    return Axis(name=name, low=0, high=max(1.0, math.log10(1 + largest) * 1.05), ticks=ticks)


def _values(name: str, low: float, high: float) -> Axis:
    step = _step((high - low) / 4)
    first = math.ceil(low / step - 1e-9)
    ticks = tuple((i * step, short(i * step)) for i in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(name=name, low=low, high=high, ticks=ticks)


def _step(about: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least `about`."""
    power = 10.0 ** math.floor(math.log10(about)) if about > 0 else 1.0
    return next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= about * (1 - 1e-9))
