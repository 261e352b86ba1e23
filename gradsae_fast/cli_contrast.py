"""The verb `gradsae contrast`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gradsae_fast import open_scores, ranking, render
from gradsae_fast.cli_rank import (
    ByOption,
    CountOption,
    ExactOption,
    FormatOption,
    MaskedOption,
    ObjectiveOption,
    OutputOption,
    SiteOption,
    Store,
)
from gradsae_fast.counts import counted
from gradsae_fast.errors import QueryError


def contrast(
    store: Store,
    a: Annotated[str | None, typer.Option(help="Condition of the first group.", show_default=False)] = None,
    b: Annotated[str | None, typer.Option(help="Condition of the second group; unset: all other documents.")] = None,
    groups: Annotated[
        str | None, typer.Option(help="Instead of --a: each value of this metadata column against all others.")
    ] = None,
    by: ByOption = "influence",
    order: Annotated[
        str | None,
        typer.Option(help="difference, effect_size, a, b, p, q or auroc.", show_default="difference; a with --groups"),
    ] = None,
    permutations: Annotated[int, typer.Option(help="Relabellings of a permutation test; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the relabellings.")] = 0,
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    include_special: MaskedOption = None,
    exact_dense: ExactOption = False,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which latents differ most between groups of documents.

    Example: `gradsae contrast speeches.gradsae --a party=Republican --b party=Democratic`
    """
    if (a is None) == (groups is None):
        raise QueryError(
            "a contrast needs --a CONDITION or --groups COLUMN, one of the two; like --a party=Republican."
        )
    if groups is not None and (b is not None or permutations or seed):
        raise QueryError("--groups compares each group with all others: it takes no --b, --permutations or --seed.")
    chosen: dict[str, Any] = {
        "by": by,
        "k": k,
        "site": site,
        "objective": objective,
        "include_special": include_special,
        "exact_dense": exact_dense,
    }
    chosen |= {} if order is None else {"order": order}
    opened = open_scores(store)
    if groups is not None:
        table = ranking.contrast_groups(opened, column=groups, **chosen)
    else:
        assert a is not None
        table = ranking.contrast(opened, a=a, b=b, permutations=permutations, seed=seed, **chosen)
    render.show_table(table, format, output)
    if format == "table":
        typer.echo(tested_line(ranking.query_of(table)))


def tested_line(query: Mapping[str, Any]) -> str:
    """What was tested: the metadata of a contrast in one line."""
    if query.get("num_documents_both"):
        return f"in both groups: {counted(query['num_documents_both'], 'document')}; no p, q or auroc"
    drawn = f"seed {query['seed']}" if "seed" in query else "all there are"
    relabelled = f"; permutation test: {query['permutations']} relabellings, {drawn}" if "permutations" in query else ""
    tested = f"q: corrected for {counted(query['num_compared'], 'test')}"
    return f"{tested if query['num_compared'] else 'no p or q: a group of one document has no spread'}{relabelled}"
