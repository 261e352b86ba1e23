"""The verb `gradsae compare`: two stores over one corpus, latent by latent."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gradsae_fast import open_scores, render
from gradsae_fast.cli_rank import (
    ByOption,
    CountOption,
    FormatOption,
    MaskedOption,
    ObjectiveOption,
    OutputOption,
    WhereOption,
)
from gradsae_fast.counts import counted
from gradsae_fast.ranking import query_of


def compare(
    a: Annotated[str, typer.Argument(help="A store; its ranking gives the order.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The store to compare with; the same one for two sites.")],
    match: Annotated[
        str, typer.Option(help="best: A's latents with their closest in B; same: one SAE in both, latent by latent.")
    ] = "best",
    level: Annotated[
        str | None,
        typer.Option(help="best: correlate over tokens or documents.", show_default="tokens, where they are the same"),
    ] = None,
    where: WhereOption = None,
    by: ByOption = "influence",
    k: CountOption = 20,
    site_a: Annotated[str | None, typer.Option(help="Site of A, where it has several.")] = None,
    site_b: Annotated[str | None, typer.Option(help="Site of B, where it has several.")] = None,
    objective: ObjectiveOption = None,
    include_special: MaskedOption = None,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """How the latents of two SAEs, layers or checkpoints compare over the documents that both stores have.

    Example: `gradsae compare layer12.gradsae layer18.gradsae -k 10`
    """
    from gradsae_fast.ranking.compare import compare_stores

    table = compare_stores(
        open_scores(a),
        open_scores(b),
        match=match,
        level=level,
        where=where,
        by=by,
        k=k,
        site_a=site_a,
        site_b=site_b,
        objective=objective,
        include_special=include_special,
    )
    render.show_table(table, format, output)
    if format == "table":
        typer.echo(matched_line(query_of(table)))


def matched_line(query: Mapping[str, Any]) -> str:
    """What was matched, and how well on the whole: the metadata of a comparison in one line."""
    corpus = "" if query["same_corpus"] else "; the two runs read other plans or windows"
    sae = "; other SAEs" if query["match"] == "same" and query.get("same_sae") is False else ""
    unequal = f"; {query['num_unequal']} with another number of tokens" if query["num_unequal"] else ""
    found = f"Spearman of the two rankings {query.get('spearman', math.nan):.3f}"
    if query["match"] == "best":
        found = (
            f"r over {query['level']}: mean {query.get('mean_correlation', math.nan):.3f}, {query['num_mutual']} "
            f"mutual, by chance {query.get('chance_correlation', math.nan):.3f}"
        )
    return (
        f"{counted(query['num_documents'], 'document')} in both, {query['num_only_a']} in A alone, "
        f"{query['num_only_b']} in B alone{unequal}{corpus}{sae}; {found}"
    )
