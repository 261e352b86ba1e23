"""The page beside the numbers."""

from collections.abc import Sequence

from benchmarks.soak.sample import Sample
from benchmarks.soak.trend import Trend


def page(samples: Sequence[Sample], trends: Sequence[Trend], *, machine: str, date: str, warm_up: float) -> str:
    """What was measured, as Markdown."""
    last = samples[-1]
    lines = [
        f"# An hour of extraction: {date}" if last.seconds > 3000 else f"# {last.seconds:.0f} s of extraction: {date}",
        "",
        machine,
        "",
        f"One process, {last.seconds / 60:.1f} minutes: {last.tokens:,} tokens scored, {last.round} stores completed,",
        "each broken off once in its middle and resumed, then verified, asked a question, and deleted when the next",
        f"one was complete. {len(samples)} samples from outside. Trends are over whole rounds after the first",
        f"{warm_up / 60:.1f} minutes: of a round its mean, of disk and counts its lowest. `flat`: the upper end of the",
        "slope's 95 % interval (widened by the rounds' autocorrelation) is below the limit, which was fixed before.",
        "",
        "| | rounds | mean | highest | growth in an hour [95 %] | limit | |",
        "|---|---|---|---|---|---|---|",
        *map(_row, trends),
        "",
        f"![samples]({date}-soak.svg)",
    ]
    return "\n".join([*lines, ""])


def _row(found: Trend) -> str:
    unit = f" [{found.unit}]" if found.unit else ""
    numbers = f"{found.slope:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
    return (
        f"| {found.name}{unit} | {found.rounds} | {found.mean:,.4g} | {found.highest:,.4g} | {numbers} | "
        f"{found.limit:.3g} | **{found.verdict}** |"
    )
