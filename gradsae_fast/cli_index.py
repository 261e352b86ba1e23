"""The verb `gradsae index`: make the index of a store anew."""

import typer

from gradsae_fast.cli_rank import Store
from gradsae_fast.counts import counted


def index(store: Store) -> None:
    """Make the index of a store, which rankings look things up in; answers are the same without it.

    Extraction makes it when its last segment is committed. Needed again after a repair, and for stores of releases that
    made none.

    Example: `gradsae index speeches.gradsae`
    """
    from gradsae_fast.ranking.index import build_index

    report = build_index(store)
    kept = ", ".join(f"{count} at {site}" for site, count in report.leaders.items() if count)
    typer.echo(
        f"wrote the index of {counted(report.num_segments, 'segment')} with "
        f"{counted(report.num_documents, 'document')}: {report.num_bytes:,} bytes "
        f"in {report.path}/index; leading tokens kept of each latent: "
        f"{kept or 'none, as the store is small enough to be read'}"
    )
