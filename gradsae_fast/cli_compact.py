"""The verb `gradsae compact`: fewer, longer segments."""

from typing import Annotated

import typer

from gradsae_fast.cli_rank import Store
from gradsae_fast.counts import counted
from gradsae_fast.render import human_bytes
from gradsae_fast.store.changes.compact import TOKENS_PER_SEGMENT


def compact(
    store: Store,
    tokens_per_segment: Annotated[
        int, typer.Option("--tokens-per-segment", help="Tokens that a segment has at most.")
    ] = TOKENS_PER_SEGMENT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of the segments.")] = False,
) -> None:
    """Write runs of small neighbouring segments as one each; answers stay what they were, and come sooner.

    Example: `gradsae compact speeches.gradsae --dry-run`
    """
    from gradsae_fast.compact import compact as compact_store

    report = compact_store(store, tokens_per_segment=tokens_per_segment, dry_run=dry_run)
    if report.segments_before == report.segments_after:
        typer.echo(f"{report.path}: nothing to compact: {counted(report.segments_before, 'segment')} as long as may be")
        return
    done = "would become" if dry_run else "became"
    after = f", {human_bytes(report.bytes_after)} now" if report.bytes_after is not None else ""
    typer.echo(
        f"{report.path}: {counted(report.segments_before, 'segment')} {done} {report.segments_after:,}; "
        f"{counted(report.num_documents, 'document')}, {human_bytes(report.bytes_before)}{after}"
    )
