"""The verb `gradsae extract`: settings from a file and from options, then the run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsae_fast import render
from gradsae_fast.config import ExtractConfig, config_from_tables, load_config
from gradsae_fast.errors import ConfigError
from gradsae_fast.progress import progress_bar

_MANY = "Many machines"


def extract(
    model: Annotated[str | None, typer.Option(help="Language model: folder or hub id.")] = None,
    sae: Annotated[list[str] | None, typer.Option(help="SAE: folder, params.npz or hub id; repeat for more.")] = None,
    corpus: Annotated[str | None, typer.Option(help="jsonl(.gz, .zst), parquet, text, folder, or hf://name.")] = None,
    out: Annotated[str | None, typer.Option(help="The store to make, or to go on with.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; options here win over it.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site of each --sae, in order; default: its metadata.")] = None,
    reads: Annotated[list[str] | None, typer.Option(help="What each transcoder reads; default: its metadata.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="gradsae, attribution-patching, paper or authors-code.", show_default="gradsae")
    ] = None,
    objective: Annotated[list[str] | None, typer.Option(help="What is differentiated; repeat for more.")] = None,
    error_term: Annotated[
        bool | None, typer.Option("--error-term/--no-error-term", help="Keep the SAE's error; default: the preset's.")
    ] = None,
    splice: Annotated[str | None, typer.Option(help="Spliced positions: unmasked or all.")] = None,
    path_steps: Annotated[int | None, typer.Option(help="Integrated gradients: points of the path.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", show_default="text")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of unique keys.", show_default="id, if there")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Prompt, for continuation objectives.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Answer, for continuation objectives.")] = None,
    contrast_columns: Annotated[str | None, typer.Option(help="Two columns y1,y2 for logit-diff.")] = None,
    patch_column: Annotated[str | None, typer.Option(help="Text to compare with: attribution patching.")] = None,
    metadata_columns: Annotated[str | None, typer.Option(help="Columns to keep, with commas; default: all.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a dataset by name.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset by name.", show_default="train")] = None,
    max_documents: Annotated[int | None, typer.Option(help="Only the first documents.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens of a window.", show_default="1024")] = None,
    overlap: Annotated[int | None, typer.Option(help="Context that later windows repeat.", show_default="128")] = None,
    bos: Annotated[str | None, typer.Option(help="auto (as the SAE was trained), always or never.")] = None,
    sink_norm_ratio: Annotated[
        float | None, typer.Option(help="Mask tokens above this many median norms; 0: off.", show_default="10")
    ] = None,
    mask_token_id: Annotated[list[int] | None, typer.Option(help="Token id to mask anywhere; repeat.")] = None,
    nonfinite: Annotated[str | None, typer.Option(help="NaN or Inf: raise, quarantine or keep.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="eager, sdpa, flex_attention, ...: as transformers calls it.", show_default="auto"),
    ] = None,
    precision_bits: Annotated[int | None, typer.Option(help="3, 7, 10 or 23 (exact).", show_default="10")] = None,
    store_profile: Annotated[str | None, typer.Option(help="compact (smallest) or portable.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Token budget of a batch.", show_default="2048")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    exact_dense: Annotated[
        float | None, typer.Option(help="Ablate exactly what fires on more than this share of tokens, like 0.2.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="local; static: one of the workers that torchrun or Slurm started; ray.",
            show_default="local",
            rich_help_panel=_MANY,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Of Ray.", show_default="one a GPU, or a node", rich_help_panel=_MANY)
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Of Ray.", show_default="1, if there are any", rich_help_panel=_MANY)
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="Spread a model over a worker's GPUs: auto, balanced.", rich_help_panel=_MANY),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A cluster.", show_default="RAY_ADDRESS, or here", rich_help_panel=_MANY)
    ] = None,
    stall_minutes: Annotated[
        float | None,
        typer.Option(help="Fail when Ray commits nothing for so long.", show_default="30", rich_help_panel=_MANY),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time of scoring and storing goes, and write a trace.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run although the gate fails; recorded.")] = False,
) -> None:
    """Score every token of a corpus and keep the scores in a store. The same command again resumes.

    Example: `gradsae extract --model M --sae S --corpus speeches.jsonl.gz --out speeches.gradsae`
    """
    options: dict[str, dict[str, Any]] = {
        "model": {
            "path": model,
            "dtype": dtype,
            "device": device,
            "attention": attention,
            "device_map": device_map,
        },
        "corpus": {
            "path": corpus,
            "text_column": text_column,
            "id_column": id_column,
            "prompt_column": prompt_column,
            "answer_column": answer_column,
            "contrast_columns": contrast_columns and contrast_columns.split(","),
            "patch_column": patch_column,
            "metadata_columns": None if metadata_columns is None else [c for c in metadata_columns.split(",") if c],
            "subset": subset,
            "split": split,
            "max_documents": max_documents,
            "context_length": context_length,
            "overlap": overlap,
            "bos": bos,
        },
        "score": {
            "preset": preset,
            "objectives": objective or None,
            "use_error_term": error_term,
            "splice": splice,
            "path_steps": path_steps,
            "sink_norm_ratio": sink_norm_ratio,
            "mask_token_ids": mask_token_id or None,
            "nonfinite": nonfinite,
        },
        "store": {"path": out, "precision_bits": precision_bits, "profile": store_profile},
        "run": {
            "tokens_per_batch": tokens_per_batch,
            "threads": threads,
            "force": force or None,
            "trace": profile or None,
            "exact_dense": exact_dense,
            "engine": engine,
            "workers": workers,
            "gpus_per_worker": gpus_per_worker,
            "ray_address": ray_address,
            "stall_minutes": stall_minutes,
        },
    }
    places = {"site": site or [], "reads": reads or []}
    _carry_out(_configure(config, options, sae or [], places), dry_run=dry_run)


def _configure(
    path: Path | None, options: dict[str, dict[str, Any]], saes: list[str], places: dict[str, list[str]]
) -> ExtractConfig:
    """The file's settings with the options that were given on top."""
    given = {name: {key: v for key, v in table.items() if v is not None} for name, table in options.items()}
    overrides: dict[str, Any] = {name: table for name, table in given.items() if table}
    for name, values in places.items():
        if values and len(values) != len(saes):
            raise ConfigError(
                f"got {len(values)} --{name} for {len(saes)} --sae; expected one each, in the same order."
            )
    if saes:
        overrides["sae"] = [
            {"path": sae} | {name: values[index] for name, values in places.items() if values}
            for index, sae in enumerate(saes)
        ]
    return load_config(path, overrides) if path else config_from_tables(overrides)


def _carry_out(config: ExtractConfig, *, dry_run: bool) -> None:
    render.quiet_transformers()
    from gradsae_fast import estimate as costs
    from gradsae_fast import extract as line

    if dry_run:
        render.show_estimate(costs.estimate(config))
        if config.run.exact_dense is not None:
            typer.echo(
                "note     without the exact pass: a forward pass from the site up for each dense latent of a document"
            )
        return
    with progress_bar() as bar:
        report = line.extract(config, on_message=bar.message, on_progress=bar.update)
    render.show_report(report)
