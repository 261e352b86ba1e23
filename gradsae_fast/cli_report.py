"""The verb `gradsae report`: an audit of a store as static pages."""

from pathlib import Path
from typing import Annotated

import typer

from gradsae_fast import open_scores, render
from gradsae_fast.cli_rank import ObjectiveOption, SiteOption, Store, on_disk
from gradsae_fast.counts import counted
from gradsae_fast.errors import ConfigError


def report(
    store: Store,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the pages.", show_default=False, parser=on_disk),
    ],
    top: Annotated[
        int | None,
        typer.Option(
            help="Pages for so many latents, by summed |influence|; --groups adds those that set groups apart.",
            show_default="100",
        ),
    ] = None,
    latent: Annotated[list[int] | None, typer.Option(help="Number of a latent instead; repeat for more.")] = None,
    documents: Annotated[int, typer.Option(help="Pages for so many documents.")] = 20,
    contexts: Annotated[int, typer.Option(help="Tokens in each list of a latent.")] = 20,
    context: Annotated[int, typer.Option(help="Tokens of text on each side.")] = 12,
    groups: Annotated[list[str] | None, typer.Option(help="Metadata column to compare; repeat for more.")] = None,
    contrast_a: Annotated[str | None, typer.Option(help='One group: "party=Republican".')] = None,
    contrast_b: Annotated[str | None, typer.Option(help='The other: "party=Democratic".')] = None,
    labels: Annotated[Path | None, typer.Option(help="csv with latent,label, or a Neuronpedia .jsonl export.")] = None,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
) -> None:
    """Pages that show what the latents do: open `index.html` of the folder in a browser, no network needed.

    Example: `gradsae report speeches.gradsae -o audit --groups party`
    """
    from gradsae_fast.report import write_report

    if (contrast_a is None) != (contrast_b is None):
        raise ConfigError("--contrast-a and --contrast-b go together; got only one of them.")
    if top is not None and latent:
        raise ConfigError("--top and --latent exclude each other; give one of them.")
    pairs = [] if contrast_a is None or contrast_b is None else [(contrast_a, contrast_b)]
    summary = write_report(
        open_scores(store),
        out,
        latents=latent or None,
        k=100 if top is None else top,
        documents=documents,
        contexts=contexts,
        context=context,
        groups=[*(groups or ()), *pairs],
        labels=labels,
        site=site,
        objective=objective,
    )
    typer.echo(
        f"{counted(summary.num_latents, 'latent')}, {counted(summary.num_documents, 'document')}: "
        f"{counted(summary.num_files, 'file')}, "
        f"{render.human_bytes(summary.num_bytes)}, the largest page {render.human_bytes(summary.largest_page)}"
    )
    typer.echo(f"open: {summary.folder / 'index.html'}")
