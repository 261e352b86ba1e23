"""The verb `gradsae merge`: several stores into one, or one into a store of the present format."""

from typing import Annotated

import typer

from gradsae_fast import render
from gradsae_fast.counts import counted
from gradsae_fast.terminal import say


def merge(
    stores: Annotated[
        list[str], typer.Argument(help="The stores to merge; they stay as they are.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="The merged store: new, or begun by the same command.", show_default=False)],
) -> None:
    """Make one store of several: parts of one run, or runs over different documents. The same command again resumes.

    One store alone is copied into the present format version, for stores that earlier releases wrote.

    Example: `gradsae merge monday.gradsae tuesday.gradsae --out week.gradsae`
    """
    from gradsae_fast.merge import merge as merge_stores

    report = merge_stores(stores, out, on_message=say)
    generations = f", {report.num_generations} generations" if report.num_generations > 1 else ""
    typer.echo(
        f"{report.path}: {counted(report.num_segments, 'segment')} copied, {report.num_skipped:,} were there"
        f"{generations}; {render.human_bytes(report.num_bytes)}"
    )
    if report.num_missing:
        typer.echo(
            f"in none of the stores: {counted(report.num_missing, 'segment')} of their plans; "
            f"`gradsae append {report.path} --corpus CORPUS` scores those of that corpus"
        )
