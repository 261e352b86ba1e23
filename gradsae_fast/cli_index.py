"""The verb `gradsae index`: make the index of a store anew."""

import typer

from gradsae_fast.cli_rank import Store


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
        f"wrote the index of {report.num_segments:,} segments with {report.num_documents:,} documents: "
        f"{report.num_bytes:,} bytes in {report.path}/index; leading tokens kept of each latent: "
        f"{kept or 'none, as the store is small enough to be read'}"
    )
