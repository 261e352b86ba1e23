"""The verb `gradsae drop`: take documents out of a store for good."""

from typing import Annotated

import typer

from gradsae_fast.cli_rank import Store, WhereOption
from gradsae_fast.counts import counted
from gradsae_fast.render import human_bytes
from gradsae_fast.terminal import tell


def drop(
    store: Store,
    document: Annotated[list[str] | None, typer.Argument(help="Keys of documents.", show_default=False)] = None,
    where: WhereOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be dropped.")] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="In a bucket, delete what killed writers left, too; only while nobody writes."),
    ] = False,
) -> None:
    """Take documents out of a store for good: no query has them any more, and none of its files.

    All of them go at once, and stay gone where the store is repaired and extracted again.

    Example: `gradsae drop speeches.gradsae --where "speaker=Nixon" --dry-run`
    """
    from gradsae_fast.drop import drop as drop_documents
    from gradsae_fast.store.changes.leftovers import listed

    report = drop_documents(store, document or None, where=where, dry_run=dry_run, sweep=sweep)
    before = f"{report.num_before:,} had been dropped before; " if report.num_before else ""
    done = "would drop" if dry_run else "dropped"
    after = f", {human_bytes(report.bytes_after)} now" if report.bytes_after is not None and report.num_segments else ""
    typer.echo(
        f"{report.path}: {before}{done} {counted(report.num_documents, 'document')} with "
        f"{counted(report.num_tokens, 'token')} from {counted(report.num_segments, 'segment')} of "
        f"{human_bytes(report.bytes_before)}{after}"
    )
    if report.unfinished:
        tell(
            f"no record names {listed(report.unfinished)}: of writers that were killed or are at work, these may have "
            f"the documents too; when nobody writes any more, `gradsae drop {report.path} --sweep` deletes them"
        )
