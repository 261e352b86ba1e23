"""The verbs `gradsae rank latents|documents|tokens|oddities|stability`, and options that all questions share."""

from pathlib import Path
from typing import Annotated

import typer

from gradsae_fast import open_scores, ranking, render
from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.place import disk_path_of


def on_disk(text: str) -> Path:
    """Return the path that an option names. BadParameter, before any work, for an address of object storage."""
    try:
        return disk_path_of(text)
    except StoreError as error:
        raise typer.BadParameter(str(error)) from error


rank = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Rank latents, documents or tokens.")

Store = Annotated[
    str, typer.Argument(help="A store of `gradsae extract`: a folder, or s3://bucket/prefix.", show_default=False)
]
SiteOption = Annotated[str | None, typer.Option("--site", help="Site, where the store has several.")]
ObjectiveOption = Annotated[str | None, typer.Option("--objective", help="Objective, where the store has several.")]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where",
        help='Metadata condition: "party=Republican, year>=1950", "party in (Whig, none) or not year exists".',
    ),
]
ByOption = Annotated[str, typer.Option("--by", help="influence, positive, absolute, activation or frequency.")]
CountOption = Annotated[int, typer.Option("-k", help="How many rows.")]
SmallestOption = Annotated[bool, typer.Option("--smallest", help="Smallest first.")]
FormatOption = Annotated[str, typer.Option("--format", help="table, json, csv or parquet.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write to this file (needed for parquet).", parser=on_disk),
]
LatentOption = Annotated[int, typer.Option("--latent", help="Number of the latent.", show_default=False)]
MaskedOption = Annotated[
    bool | None,
    typer.Option("--include-special/--exclude-special", help="Count masked tokens; unset: as the store's sums do."),
]
ExactOption = Annotated[
    bool,
    typer.Option("--exact-dense", help="Exact effects for latents that fire nearly everywhere, if the store has them."),
]
PolarityOption = Annotated[
    str | None, typer.Option("--polarity", help="Of signed SAEs: positive or negative activations only.")
]


@rank.command("latents")
def rank_latents(
    store: Store,
    document: Annotated[list[str] | None, typer.Option(help="Document key; repeat for more.")] = None,
    where: WhereOption = None,
    by: ByOption = "influence",
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    smallest: SmallestOption = False,
    include_special: MaskedOption = None,
    polarity: PolarityOption = None,
    exact_dense: ExactOption = False,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which latents drive a document, a group of documents, or the corpus.

    Example: `gradsae rank latents speeches.gradsae --where party=Republican -k 10`
    """
    table = ranking.rank_latents(
        open_scores(store),
        document=document or None,
        where=where,
        by=by,
        k=k,
        site=site,
        objective=objective,
        smallest=smallest,
        include_special=include_special,
        polarity=polarity,
        exact_dense=exact_dense,
    )
    render.show_table(table, format, output)


@rank.command("documents")
def rank_documents(
    store: Store,
    latent: LatentOption,
    where: WhereOption = None,
    by: ByOption = "influence",
    per_token: Annotated[bool, typer.Option("--per-token", help="Divide by the document's length.")] = False,
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    smallest: SmallestOption = False,
    include_special: MaskedOption = None,
    polarity: PolarityOption = None,
    exact_dense: ExactOption = False,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which documents a latent drives.

    Example: `gradsae rank documents speeches.gradsae --latent 123 --per-token`
    """
    table = ranking.rank_documents(
        open_scores(store),
        latent=latent,
        where=where,
        by=by,
        per_token=per_token,
        k=k,
        site=site,
        objective=objective,
        smallest=smallest,
        include_special=include_special,
        polarity=polarity,
        exact_dense=exact_dense,
    )
    render.show_table(table, format, output)


@rank.command("tokens")
def rank_tokens(
    store: Store,
    latent: LatentOption,
    document: Annotated[list[str] | None, typer.Option(help="Document key; repeat for more.")] = None,
    where: WhereOption = None,
    by: Annotated[str, typer.Option(help="influence, positive, absolute or activation.")] = "influence",
    context: Annotated[int, typer.Option(help="Tokens of text on each side.")] = 10,
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    smallest: SmallestOption = False,
    include_special: MaskedOption = None,
    polarity: PolarityOption = None,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """On which tokens a latent acts, with their context.

    Example: `gradsae rank tokens speeches.gradsae --latent 123 --by activation --context 10`
    """
    table = ranking.rank_tokens(
        open_scores(store),
        latent=latent,
        document=document or None,
        where=where,
        by=by,
        context=context,
        k=k,
        site=site,
        objective=objective,
        smallest=smallest,
        include_special=include_special,
        polarity=polarity,
    )
    render.show_table(table, format, output)


@rank.command("oddities")
def rank_oddities(
    store: Store,
    kind: Annotated[str, typer.Option(help="idle: active, no influence; decisive: rare, much influence.")] = "idle",
    document: Annotated[list[str] | None, typer.Option(help="Document key; repeat for more.")] = None,
    where: WhereOption = None,
    min_active: Annotated[int, typer.Option(help="Tokens on which a latent is active at least.")] = 10,
    min_documents: Annotated[
        int | None, typer.Option(help="Decisive: documents in which it fires at least.", show_default="3")
    ] = None,
    max_frequency: Annotated[
        float | None, typer.Option(help="Decisive: share of tokens on which it is active at most.", show_default="0.01")
    ] = None,
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    include_special: MaskedOption = None,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which latents are active and idle, or rare and decisive.

    Example: `gradsae rank oddities speeches.gradsae --kind decisive`
    """
    from gradsae_fast.ranking.oddities import rank_oddities as list_oddities

    table = list_oddities(
        open_scores(store),
        kind=kind,
        document=document or None,
        where=where,
        min_active=min_active,
        min_documents=min_documents,
        max_frequency=max_frequency,
        k=k,
        site=site,
        objective=objective,
        include_special=include_special,
    )
    render.show_table(table, format, output)
    if format == "table":
        query = ranking.query_of(table)
        shares = f"activation shares are of {query['written']}"
        typer.echo(f"score: {query['unit']}; candidates: {query['num_candidates']}; {shares}")


@rank.command("stability")
def rank_stability(
    store: Store,
    document: Annotated[list[str] | None, typer.Option(help="Document key; repeat for more.")] = None,
    where: WhereOption = None,
    by: ByOption = "influence",
    resamples: Annotated[int, typer.Option(help="How often the documents are drawn anew.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    smallest: SmallestOption = False,
    include_special: MaskedOption = None,
    polarity: PolarityOption = None,
    exact_dense: ExactOption = False,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """How far the first latents of a ranking depend on which documents are in the corpus.

    Example: `gradsae rank stability speeches.gradsae -k 20 --resamples 1000 --seed 0`
    """
    from gradsae_fast.ranking.stability import rank_stability as bootstrap

    table = bootstrap(
        open_scores(store),
        document=document or None,
        where=where,
        by=by,
        resamples=resamples,
        seed=seed,
        k=k,
        site=site,
        objective=objective,
        smallest=smallest,
        include_special=include_special,
        polarity=polarity,
        exact_dense=exact_dense,
    )
    render.show_table(table, format, output)
    if format == "table":
        typer.echo(
            f"score: mean per counted token; {resamples} resamples of the documents, seed {seed}; 95 % intervals"
        )
