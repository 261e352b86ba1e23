"""The verbs `gradsae jacobian extract|rank`: how much latents below an MLP move latents above it."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import CountOption, FormatOption, OutputOption, SmallestOption, on_disk
from gradsae_fast.config import ExtractConfig, config_from_tables, load_config
from gradsae_fast.counts import counted
from gradsae_fast.errors import ConfigError, QueryError
from gradsae_fast.terminal import tell

jacobian = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="The Jacobian between two dictionaries around an MLP."
)

JacobianStorePath = Annotated[
    Path,
    typer.Argument(
        help="A store that `gradsae jacobian extract` made; on a disk.",
        show_default=False,
        parser=on_disk,
    ),
]
_SECONDS = 10.0  # between lines about progress


@jacobian.command("extract")
def extract(
    model: Annotated[str | None, typer.Option(help="Language model: folder or hub id.")] = None,
    sae_in: Annotated[str | None, typer.Option(help="SAE of the lower site.")] = None,
    sae_out: Annotated[str | None, typer.Option(help="SAE of the upper site.")] = None,
    site_in: Annotated[str | None, typer.Option(help="Lower site, like model.layers.3.mlp.input.")] = None,
    site_out: Annotated[str | None, typer.Option(help="Upper site, like model.layers.3.mlp.")] = None,
    corpus: Annotated[str | None, typer.Option(help="jsonl(.gz, .zst), parquet, text, folder, or hf://name.")] = None,
    out: Annotated[Path | None, typer.Option(help="The store to make, or to go on with.", parser=on_disk)] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file as of `extract`, lower SAE first; options here win over it.")
    ] = None,
    point: Annotated[
        str, typer.Option(help="Derivative at the lower SAE's reconstruction, or at the hidden state (hidden).")
    ] = "reconstruction",
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", show_default="text")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of unique keys.", show_default="id, if there")] = None,
    max_documents: Annotated[int | None, typer.Option(help="Only the first documents.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens of a window.", show_default="1024")] = None,
    overlap: Annotated[int | None, typer.Option(help="Context that later windows repeat.", show_default="128")] = None,
    bos: Annotated[str | None, typer.Option(help="auto (as the SAE was trained), always or never.")] = None,
    sink_norm_ratio: Annotated[
        float | None, typer.Option(help="Mask tokens above this many median norms; 0: off.", show_default="10")
    ] = None,
    mask_token_id: Annotated[list[int] | None, typer.Option(help="Token id to mask anywhere; repeat.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision_bits: Annotated[int | None, typer.Option(help="3, 7, 10 or 23 (exact).", show_default="10")] = None,
    profile: Annotated[str | None, typer.Option(help="compact (smallest) or portable.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Token budget of a batch.", show_default="2048")] = None,
    pairs_per_pass: Annotated[int, typer.Option(help="Tokens x latents in the MLP together: bounds memory.")] = 8192,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run although the gate fails; recorded.")] = False,
) -> None:
    """Derivatives of the active latents above an MLP by those below it, for every token. The same command resumes.

    Example: `gradsae jacobian extract --model M --sae-in A --site-in model.layers.3.mlp.input --sae-out B
    --site-out model.layers.3.mlp --corpus speeches.jsonl.gz --out speeches.jacobian`
    """
    from gradsae_fast.jacobian.block import Point
    from gradsae_fast.jacobian.extract import extract_jacobian

    render.quiet_transformers()
    if point not in list(Point):
        raise ConfigError(f"--point is {point!r}; expected one of {', '.join(Point)}.")
    tables: dict[str, dict[str, Any]] = {
        "model": {"path": model, "dtype": dtype, "device": device},
        "corpus": {
            "path": corpus,
            "text_column": text_column,
            "id_column": id_column,
            "max_documents": max_documents,
            "context_length": context_length,
            "overlap": overlap,
            "bos": bos,
        },
        "score": {"sink_norm_ratio": sink_norm_ratio, "mask_token_ids": mask_token_id or None},
        "store": {"path": out and str(out), "precision_bits": precision_bits, "profile": profile},
        "run": {"tokens_per_batch": tokens_per_batch, "threads": threads, "force": force or None},
    }
    report = extract_jacobian(
        _configure(config, tables, [(sae_in, site_in), (sae_out, site_out)]),
        point=Point(point),
        pairs_per_pass=pairs_per_pass,
        on_message=tell,
        on_progress=_Lines().update,
    )
    speed = report.num_tokens / report.seconds if report.seconds else 0.0
    typer.echo(
        f"{report.store}: {counted(report.num_segments, 'segment')} written, {report.num_skipped:,} were there; "
        f"{counted(report.num_tokens, 'token')}, {counted(report.num_pairs, 'pair')} in {report.seconds:.1f} s "
        f"({speed:.0f} tokens/s), {counted(report.bytes_written, 'byte')}"
    )
    typer.echo(f"next: gradsae jacobian rank {report.store}")


@jacobian.command("rank")
def rank(
    store: JacobianStorePath,
    latent_out: Annotated[int | None, typer.Option(help="Only edges into this upper latent.")] = None,
    latent_in: Annotated[int | None, typer.Option(help="Only edges from this lower latent.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="The tokens of one edge; needs both latents.")] = False,
    by: Annotated[
        str, typer.Option(help="absolute, mean_absolute, sum, mean, maximum or count; of tokens: absolute or value.")
    ] = "absolute",
    context: Annotated[int | None, typer.Option(help="With --tokens: tokens of text on each side.")] = None,
    k: CountOption = 20,
    smallest: SmallestOption = False,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which pairs of latents are tied most strongly, or on which tokens one pair is.

    Example: `gradsae jacobian rank speeches.jacobian --latent-out 12 -k 10`
    """
    from gradsae_fast.jacobian.ranking import rank_edge_tokens, rank_edges

    if not tokens:
        if context is not None:
            raise QueryError(f"--context {context} has no effect without --tokens; leave it out.")
        table = rank_edges(store, latent_out=latent_out, latent_in=latent_in, by=by, k=k, smallest=smallest)
    elif latent_out is None or latent_in is None:
        raise QueryError("--tokens is about one edge; give both --latent-out and --latent-in.")
    else:
        table = rank_edge_tokens(
            store,
            latent_out=latent_out,
            latent_in=latent_in,
            by=by,
            k=k,
            smallest=smallest,
            context=10 if context is None else context,
        )
    render.show_table(table, format, output)


def _configure(
    path: Path | None, tables: dict[str, dict[str, Any]], saes: list[tuple[str | None, str | None]]
) -> ExtractConfig:
    """The file's settings with the options that were given on top."""
    given: dict[str, Any] = {name: {k: v for k, v in t.items() if v is not None} for name, t in tables.items()}
    overrides = {name: table for name, table in given.items() if table}
    if path is None or any(part for pair in saes for part in pair):
        if not all(part for pair in saes for part in pair):
            raise ConfigError("--sae-in, --site-in, --sae-out and --site-out go together; give all four.")
        overrides["sae"] = [{"path": sae, "site": site} for sae, site in saes]
    return load_config(path, overrides) if path else config_from_tables(overrides)


class _Lines:
    """A line about progress now and then, on standard error."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Tokens done of all."""
        if time.monotonic() - self.last > _SECONDS:
            self.last = time.monotonic()
            sys.stderr.write(f"{done}/{total} tokens, {self.last - self.started:.0f} s\n")
