"""The verb `gradsae append`: a further corpus for a store."""

from typing import Annotated, Any

import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import Store
from gradsae_fast.progress import progress_bar

_MANY = "Many machines, as of gradsae extract"


def append(
    store: Store,
    corpus: Annotated[str, typer.Option(help="The documents: as of `gradsae extract`.", show_default=False)],
    text_column: Annotated[str | None, typer.Option(help="Column of the text; default: the store's run's.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of unique keys; default: the store's run's.")] = None,
    metadata_columns: Annotated[
        str | None, typer.Option(help="Columns to keep, with commas; default: the store's run's.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a dataset by name.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset by name.", show_default="train")] = None,
    max_documents: Annotated[int | None, typer.Option(help="Only the first documents.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it has moved.")] = None,
    sae: Annotated[list[str] | None, typer.Option(help="Where each SAE is now, in order.")] = None,
    exact_dense: Annotated[
        float | None, typer.Option(help="Ablate exactly what fires on more than this share of tokens, like 0.2.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="local, static or ray.", show_default="local", rich_help_panel=_MANY)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Of Ray.", show_default="one a GPU, or a node", rich_help_panel=_MANY)
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Of Ray.", show_default="1, if there are any", rich_help_panel=_MANY)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A cluster.", show_default="RAY_ADDRESS, or here", rich_help_panel=_MANY)
    ] = None,
    stall_minutes: Annotated[
        float | None,
        typer.Option(help="Fail when Ray commits nothing for so long.", show_default="30", rich_help_panel=_MANY),
    ] = None,
) -> None:
    """Score another corpus as the store's run did and add it to the store. The same command again resumes.

    Example: `gradsae append speeches.gradsae --corpus new-speeches.jsonl.gz`
    """
    render.quiet_transformers()
    from gradsae_fast.append import append as append_corpus

    columns = None if metadata_columns is None else [name for name in metadata_columns.split(",") if name]
    settings: dict[str, Any] = {
        "path": corpus,
        "text_column": text_column,
        "id_column": id_column,
        "metadata_columns": columns,
        "subset": subset,
        "split": split,
        "max_documents": max_documents,
    }
    run = {
        "exact_dense": exact_dense,
        "threads": threads,
        "engine": engine,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
        "ray_address": ray_address,
        "stall_minutes": stall_minutes,
    }
    with progress_bar() as bar:
        report = append_corpus(
            store,
            {name: value for name, value in settings.items() if value is not None},
            model=model,
            saes=sae or (),
            run={name: value for name, value in run.items() if value is not None},
            on_message=bar.message,
            on_progress=bar.update,
        )
    render.show_report(report)
