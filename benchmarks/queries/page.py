"""The page beside the numbers."""

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.queries.__main__ import Found, Line
    from benchmarks.queries.asked import Cost

_VARIANTS = ("index, cold", "index, warm", "no index, cold", "no index, warm")
_MEBIBYTE = 2**20
_EXPLAINED = (
    "Milliseconds from opening the store to the answer with its texts, medians of rounds; every question in a process",
    "of its own that has its modules loaded, first / asked once more there: a process that has answered nothing yet",
    "also waits for its own code and memory. Cold: no file of the store is in the page cache (`posix_fadvise`).",
    "Peak: the most resident memory of any round, libraries included, in MiB. All answers were first held to those of",
    "DuckDB and polars. These are asked of Parquet tables of the same non-zeros, warm, with all cores, and look up no",
    "texts.",
)


def page(found: "Found", machine: str, date: str) -> str:
    """Tables of medians, as Markdown."""
    engines = list(dict.fromkeys(name for line in found.lines for name in line.databases))
    return "\n".join(
        [
            f"# What questions cost: {date}",
            "",
            f"{machine}.",
            *_described(found),
            "",
            *_EXPLAINED,
            "",
            "| question | goal | " + " | ".join([*_VARIANTS, "peak", *engines]) + " |",
            "|---|" + "---|" * (len(_VARIANTS) + len(engines) + 2),
            *(_row(line, engines) for line in found.lines),
            "",
        ]
    )


def _described(found: "Found") -> list[str]:
    built, size = found.built, _mebibytes(found.built.index_bytes)
    return [
        f"`{found.store}`: {found.non_zeros:,} non-zeros, {found.documents:,} documents, {found.segments} segments;",
        f"{_mebibytes(found.store_bytes)} MiB, of these {size} MiB are its index. The index was made in",
        f"{built.seconds:.1f} s ({built.cpu_seconds:.1f} CPU seconds), peak {_mebibytes(built.peak_bytes)} MiB.",
    ]


def _row(line: "Line", engines: list[str]) -> str:
    goal = "" if line.goal is None else f"≤ {1000 * line.goal:,.0f}"
    medians = [_first_and_later(line.costs[name]) for name in _VARIANTS]
    peak = max(cost.peak_bytes for costs in line.costs.values() for cost in costs) / _MEBIBYTE
    databases = [_milliseconds(line.databases[name]) if name in line.databases else "" for name in engines]
    return f"| {line.question} | {goal} | " + " | ".join([*medians, f"{peak:.0f}", *databases]) + " |"


def _first_and_later(costs: "list[Cost]") -> str:
    first, later = ([getattr(cost, name) for cost in costs] for name in ("seconds", "later_seconds"))
    return f"{_milliseconds(statistics.median(first))} / {_milliseconds(statistics.median(later))}"


def _mebibytes(size: int) -> str:
    return f"{size / _MEBIBYTE:,.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"
