"""What an experiment found: a table in the paper's form with bootstrap intervals, as json, csv, markdown and a plot.

The plot is an SVG written here: a dozen lines and circles need no library.
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradsae_fast.experiment.metrics import Interval

_COLOURS = {"activation": "#b3541e", "influence": "#1f5fa8"}
_READING = (
    "EM / F1 in percent; in brackets the 95 % bootstrap interval of EM over questions. Where all questions agree the "
    "bootstrap knows no spread: with n questions, 0 may hide up to 300/n percent, and 100 as many below it."
)
_DASHES = {"top": "", "bottom": ' stroke-dasharray="5 4"'}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One condition: how latents were ranked, which end was taken, how many, and what the answers scored."""

    ranking: str
    end: str  # top or bottom
    size: str  # K as asked for
    num_questions: int
    exact_match: Interval
    f1: Interval
    mean_set_size: float  # latents in a set, which may be fewer than K
    dense_per_set: float  # latents in a set that fire on more than a fifth of the prompt tokens
    answers: tuple[str, ...]  # what the model said, per question


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Mean share of latents that pairs of sets have in common, 0 to 1; NaN where there was no pair."""

    what: str
    end: str
    size: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An experiment's table with the facts it rests on."""

    experiment: str
    facts: Mapping[str, Any]
    rows: tuple[Row, ...]
    overlaps: tuple[Overlap, ...]


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write `<experiment>.json`, `.csv`, `.md` and `.svg` into a folder, which is made where it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "json": to_json(report),
        "csv": to_csv(report),
        "md": to_markdown(report),
        "svg": to_svg(report),
    }
    paths = []
    for suffix, text in texts.items():
        path = folder / f"{report.experiment}.{suffix}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def to_json(report: Report) -> str:
    """The whole report; NaN is written as null."""
    return json.dumps(_without_nan(asdict(report)), indent=1, ensure_ascii=False) + "\n"


def to_csv(report: Report) -> str:
    """One line per row of the table."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ends = [f"{score}_{part}" for score in ("em", "f1") for part in ("mean", "low", "high")]
    writer.writerow(["ranking", "end", "k", "questions", *ends, "mean_set_size", "dense_per_set"])
    for row in report.rows:
        numbers = [f"{value:.2f}" for score in (row.exact_match, row.f1) for value in asdict(score).values()]
        sizes = [f"{row.mean_set_size:.2f}", f"{row.dense_per_set:.2f}"]
        writer.writerow([row.ranking, row.end, row.size, row.num_questions, *numbers, *sizes])
    return stream.getvalue()


def to_markdown(report: Report) -> str:
    """The table as the paper prints it, EM/F1 in percent by size, with the interval of EM, then what surrounds it."""
    sizes = list(dict.fromkeys(row.size for row in report.rows))
    lines = [_headline(report), "", "| set | ranking | " + " | ".join(f"K={size}" for size in sizes) + " |"]
    lines.append("|---|---|" + "---|" * len(sizes))
    for (end, ranking), by_size in _grouped(report).items():
        lines.append(f"| {end.title()}K | {ranking} | " + " | ".join(_cell(by_size[size]) for size in sizes) + " |")
    lines += ["", _READING, ""]
    lines += ["Latents in a set, on average (of these dense: active on more than 20 % of the prompt tokens):", ""]
    lines += [
        "| set | ranking | " + " | ".join(f"K={size}" for size in sizes) + " |",
        "|---|---|" + "---|" * len(sizes),
    ]
    for (end, ranking), by_size in _grouped(report).items():
        cells = [f"{by_size[size].mean_set_size:.1f} ({by_size[size].dense_per_set:.1f})" for size in sizes]
        lines.append(f"| {end.title()}K | {ranking} | " + " | ".join(cells) + " |")
    if report.overlaps:
        lines += ["", "Overlap of sets, in percent:", "", "| set | of | " + " | ".join(f"K={s}" for s in sizes) + " |"]
        lines.append("|---|---|" + "---|" * len(sizes))
        for end, what in dict.fromkeys((one.end, one.what) for one in report.overlaps):
            shares = {one.size: one.share for one in report.overlaps if (one.end, one.what) == (end, what)}
            cells = ["–" if shares[size] != shares[size] else f"{100 * shares[size]:.1f}" for size in sizes]
            lines.append(f"| {end.title()}K | {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_svg(report: Report) -> str:
    """Exact match against K: one line per ranking and end, with intervals."""
    sizes = list(dict.fromkeys(row.size for row in report.rows))
    left, top, step, height = 60, 30, 90, 240
    width = left + step * max(len(sizes) - 1, 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 220}" height="{top + height + 50}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="{left}" y="18">{report.experiment}: exact match [%] against K, 95 % intervals</text>',
    ]
    for percent in range(0, 101, 25):
        y = top + height * (1 - percent / 100)
        parts.append(f'<path d="M{left} {y:.1f}H{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>')
    parts += [
        f'<text x="{left + step * i}" y="{top + height + 20}" text-anchor="middle">{size}</text>'
        for i, size in enumerate(sizes)
    ]
    for number, ((end, ranking), by_size) in enumerate(_grouped(report).items()):
        # A few pixels apart, so that equal values do not hide each other.
        points = [
            (left + step * i + 4 * number, by_size[size].exact_match) for i, size in enumerate(sizes) if size in by_size
        ]
        parts += _line(points, _COLOURS.get(ranking, "#555"), _DASHES[end], top, height)
        y = top + 16 + 20 * number
        style = f'stroke="{_COLOURS.get(ranking, "#555")}" stroke-width="2"{_DASHES[end]}'
        parts.append(f'<path d="M{width + 30} {y}h30" {style}/>')
        parts.append(f'<text x="{width + 68}" y="{y + 4}">{end.title()}K by {ranking}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(points: list[tuple[int, Interval]], colour: str, dash: str, top: int, height: int) -> list[str]:
    def y_of(percent: float) -> float:
        return top + height * (1 - percent / 100)

    path = "L".join(f"{x} {y_of(score.mean):.1f}" for x, score in points)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    for x, score in points:
        parts.append(f'<path d="M{x} {y_of(score.low):.1f}V{y_of(score.high):.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{x}" cy="{y_of(score.mean):.1f}" r="3" fill="{colour}"/>')
    return parts


def _headline(report: Report) -> str:
    facts = report.facts
    method = facts["method"]
    text = (
        f"{report.experiment.title()}, preset `{method['preset']}`, objective `{method['objectives'][0]}`, site "
        f"`{facts['site']}`: {facts['num_tried']} questions tried, {facts['num_right_clean']} right without the SAE, "
        f"{facts['num_right_unmasked']} right in the method's own mode "
        f"({'error term kept' if method['use_error_term'] else 'reconstruction spliced in'}) and used."
    )
    return text + (f" {facts['num_steered']} of them have a partner." if "num_steered" in facts else "")


def _grouped(report: Report) -> dict[tuple[str, str], dict[str, Row]]:
    """Rows by (end, ranking), then by size."""
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in sorted(report.rows, key=lambda row: row.end != "top"):
        groups.setdefault((row.end, row.ranking), {})[row.size] = row
    return groups


def _cell(row: Row) -> str:
    score = row.exact_match
    return f"{score.mean:.1f} / {row.f1.mean:.1f} [{score.low:.0f}, {score.high:.0f}]"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
