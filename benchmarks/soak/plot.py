"""The picture: one panel for each measure over time, the warm-up shaded, the fitted line dashed."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from benchmarks.soak.sample import Sample
from benchmarks.soak.trend import HOUR, MEASURES, Measure, Trend

_LEFT, _WIDTH, _HEIGHT, _ROW = 80, 760, 90, 140


def to_svg(samples: Sequence[Sample], trends: Sequence[Trend], warm_up: float) -> str:
    """Panels one below the other, and tokens a second at the bottom; every axis of amounts begins at zero."""
    end = samples[-1].seconds
    height = _ROW * (len(MEASURES) + 1) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, (measure, found) in enumerate(zip(MEASURES, trends, strict=True)):
        amounts = [measure.of_sample(sample) / measure.scale for sample in samples]
        title = f"{measure.name}{f' [{measure.unit}]' if measure.unit else ''}: {found.verdict}"
        parts += _panel(row, title, [sample.seconds for sample in samples], amounts, end, warm_up)
        parts.append(_fitted(row, measure, found, samples, max(amounts), end, warm_up))
    times, speeds = _speed(samples)
    parts += _panel(len(MEASURES), "tokens a second (not judged: the machine is shared)", times, speeds, end, warm_up)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    row: int, title: str, seconds: Sequence[float], amounts: Sequence[float], end: float, warm_up: float
) -> list[str]:
    top, most = 30 + row * _ROW, max(max(amounts), 1e-9)
    spots = " ".join(
        f"{_x(second, end):.1f},{_y(top, amount, most):.1f}" for second, amount in zip(seconds, amounts, strict=True)
    )
    ticks = (0, end / 4, end / 2, 3 * end / 4, end)
    return [
        f'<text x="{_LEFT}" y="{top - 6}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{_x(warm_up, end) - _LEFT:.1f}" height="{_HEIGHT}" fill="#eee"/>',
        f'<path d="M{_LEFT} {top}v{_HEIGHT}h{_WIDTH}" fill="none" stroke="#999"/>',
        f'<text x="{_LEFT - 6}" y="{top + 8}" text-anchor="end">{most:,.4g}</text>',
        f'<text x="{_LEFT - 6}" y="{top + _HEIGHT}" text-anchor="end">0</text>',
        *(
            f'<text x="{_x(tick, end):.1f}" y="{top + _HEIGHT + 14}" text-anchor="middle">{tick / 60:.3g} min</text>'
            for tick in ticks
        ),
        f'<polyline points="{spots}" fill="none" stroke="#0b6e99" stroke-width="1"/>',
    ]


def _fitted(
    row: int, measure: Measure, found: Trend, samples: Sequence[Sample], most: float, end: float, warm_up: float
) -> str:
    """The line through the rounds, about the middle of the time that they took."""
    top, middle = 30 + row * _ROW, (warm_up + end) / 2
    ends = [(second, found.mean + found.slope * (second - middle) / HOUR) for second in (warm_up, end)]
    spots = " ".join(f"{_x(second, end):.1f},{_y(top, amount, max(most, 1e-9)):.1f}" for second, amount in ends)
    return f'<polyline points="{spots}" stroke="#c2571a" stroke-dasharray="6 3" fill="none" stroke-width="1.5"/>'


def _speed(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Tokens a second of each minute or, of a short run, of each tenth of it."""
    whole = samples[-1].seconds
    step = max(1, round(len(samples) * min(60 / whole, 0.1)))
    kept = samples[::step]
    pairs = [(a, b) for a, b in pairwise(kept) if b.seconds > a.seconds]
    return [b.seconds for _, b in pairs], [(b.tokens - a.tokens) / (b.seconds - a.seconds) for a, b in pairs]


def _x(second: float, end: float) -> float:
    return _LEFT + _WIDTH * second / end


def _y(top: float, amount: float, most: float) -> float:
    return top + _HEIGHT * (1 - amount / most)
