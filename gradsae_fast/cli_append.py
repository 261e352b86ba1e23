"""The verb `gradsae append`: a further corpus for a store."""

from typing import Annotated, Any

import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import Store
from gradsae_fast.progress import progress_bar


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
    engine: Annotated[
        str | None, typer.Option(help="local, static or ray, as of `gradsae extract`.", show_default="local")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Workers of the engine ray.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
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
    run = {"exact_dense": exact_dense, "engine": engine, "workers": workers, "threads": threads}
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
