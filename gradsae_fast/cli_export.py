"""The verb `gradsae export`: a store as a file of another tool."""

from pathlib import Path
from typing import Annotated

import typer

from gradsae_fast import open_scores, render
from gradsae_fast.cli_rank import MaskedOption, ObjectiveOption, SiteOption, Store, WhereOption, on_disk
from gradsae_fast.counts import counted


def export(
    store: Store,
    to: Annotated[str, typer.Option(help="parquet, csr, anndata, neuronpedia or delphi.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File (delphi: folder) to write.",
            show_default=False,
            parser=on_disk,
        ),
    ],
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    document: Annotated[list[str] | None, typer.Option(help="Document key; repeat for more.")] = None,
    where: WhereOption = None,
    latent: Annotated[list[int] | None, typer.Option(help="Number of a latent; repeat for more.")] = None,
    include_special: MaskedOption = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="csr, anndata: the measure (influence). neuronpedia: what contexts are chosen by (activation)."
        ),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="csr: documents or tokens.", show_default="documents")] = None,
    per_token: Annotated[
        bool | None, typer.Option("--per-token", help="csr, anndata: means over a document's tokens, not sums.")
    ] = None,
    order: Annotated[str | None, typer.Option(help="parquet: sorted by token or latent.", show_default="token")] = None,
    k: Annotated[int | None, typer.Option("-k", help="neuronpedia: contexts of a latent.", show_default="20")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a context (neuronpedia, 64) or of a row (delphi, 256).")
    ] = None,
    model_id: Annotated[str | None, typer.Option(help="neuronpedia: its name of the model.")] = None,
    source_id: Annotated[str | None, typer.Option(help="neuronpedia: its name of the SAE, like 6-res-jb.")] = None,
    splits: Annotated[int | None, typer.Option(help="delphi: files of latents.", show_default="5")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write scores as Parquet, scipy CSR, AnnData, Neuronpedia JSONL or delphi's cache.

    Example: `gradsae export speeches.gradsae --to parquet -o scores.parquet`
    """
    from gradsae_fast.export import export_scores

    asked = {
        "site": site,
        "objective": objective,
        "document": document or None,
        "where": where,
        "latent": latent or None,
        "include_special": include_special,
        "by": by,
        "rows": rows,
        "per_token": per_token,
        "order": order,
        "k": k,
        "context": context,
        "model_id": model_id,
        "source_id": source_id,
        "splits": splits,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    done = export_scores(open_scores(store), output, to=to, overwrite=overwrite, **given)
    typer.echo(f"{done.path}: {counted(done.count, done.unit)}, {render.human_bytes(done.num_bytes)}")
