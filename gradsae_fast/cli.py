"""The command line: verbs that parse, call and print. Errors are one message, without a traceback.

Exit status: 0 done, 1 an error or a fault found, 2 options that make no sense, 130 interrupted. torch is imported only
by the verbs that run a model.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsae_fast import open_scores, ranking, render
from gradsae_fast.cli_certify import certify
from gradsae_fast.cli_experiment import experiment
from gradsae_fast.cli_rank import (
    ByOption,
    CountOption,
    FormatOption,
    MaskedOption,
    ObjectiveOption,
    OutputOption,
    SiteOption,
    Store,
    rank,
)
from gradsae_fast.config import ExtractConfig, SaeConfig, ScoreConfig, config_from_tables, load_config
from gradsae_fast.errors import ConfigError, GradsaeError, QueryError


class Verbs(typer.core.TyperGroup):
    """Says what went wrong in a verb; what is wrong with the options Typer says by itself."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; deliberate errors and those of the operating system become one message."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, where Typer still passes over it
        except KeyboardInterrupt as interrupt:
            print("interrupted; what was committed stays. Run the same command again to go on.", file=sys.stderr)
            raise typer.Exit(130) from interrupt
        except BrokenPipeError:
            raise
        except (GradsaeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        return result


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Influence databases over whole corpora: GradSAE scores, stored sparsely, ranked offline.",
)
app.add_typer(rank, name="rank")
app.command()(certify)
app.add_typer(experiment, name="experiment")


@app.command()
def extract(
    model: Annotated[str | None, typer.Option(help="Language model: folder or hub id.")] = None,
    sae: Annotated[list[str] | None, typer.Option(help="SAE: folder, params.npz or hub id; repeat for more.")] = None,
    corpus: Annotated[str | None, typer.Option(help="jsonl(.gz, .zst), parquet, text, folder, or hf://name.")] = None,
    out: Annotated[str | None, typer.Option(help="The store to make, or to go on with.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; options here win over it.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site of each --sae, in order; default: its metadata.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="gradsae, attribution-patching, paper or authors-code.", show_default="gradsae")
    ] = None,
    objective: Annotated[list[str] | None, typer.Option(help="What is differentiated; repeat for more.")] = None,
    error_term: Annotated[
        bool | None, typer.Option("--error-term/--no-error-term", help="Keep the SAE's error; default: the preset's.")
    ] = None,
    splice: Annotated[str | None, typer.Option(help="Spliced positions: unmasked or all.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.", show_default="text")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of unique keys.", show_default="id, if there")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Prompt, for continuation objectives.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Answer, for continuation objectives.")] = None,
    contrast_columns: Annotated[str | None, typer.Option(help="Two columns y1,y2 for logit-diff.")] = None,
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
    precision_bits: Annotated[int | None, typer.Option(help="3, 7, 10 or 23 (exact).", show_default="10")] = None,
    profile: Annotated[str | None, typer.Option(help="compact (smallest) or portable.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Token budget of a batch.", show_default="2048")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run although the gate fails; recorded.")] = False,
) -> None:
    """Score every token of a corpus and keep the scores in a store. The same command again resumes.

    Example: `gradsae extract --model M --sae S --corpus speeches.jsonl.gz --out speeches.gradsae`
    """
    options: dict[str, dict[str, Any]] = {
        "model": {"path": model, "dtype": dtype, "device": device},
        "corpus": {
            "path": corpus,
            "text_column": text_column,
            "id_column": id_column,
            "prompt_column": prompt_column,
            "answer_column": answer_column,
            "contrast_columns": contrast_columns and contrast_columns.split(","),
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
            "sink_norm_ratio": sink_norm_ratio,
            "mask_token_ids": mask_token_id or None,
            "nonfinite": nonfinite,
        },
        "store": {"path": out, "precision_bits": precision_bits, "profile": profile},
        "run": {"tokens_per_batch": tokens_per_batch, "threads": threads, "force": force or None},
    }
    _carry_out(_configure(config, options, sae or [], site or []), dry_run=dry_run)


@app.command()
def score(
    text: Annotated[str, typer.Argument(help="The prompt.", show_default=False)],
    model: Annotated[str, typer.Option(help="Language model: folder or hub id.", show_default=False)],
    sae: Annotated[str, typer.Option(help="SAE: folder, params.npz or hub id.", show_default=False)],
    site: Annotated[str | None, typer.Option(help="Site; default: the SAE's metadata.")] = None,
    preset: Annotated[str, typer.Option(help="gradsae, attribution-patching, paper or authors-code.")] = "gradsae",
    objective: Annotated[str | None, typer.Option(help="What is differentiated; default: the preset's.")] = None,
    answer: Annotated[str | None, typer.Option(help="Answer, for the continuation objectives.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Two continuations y1,y2 for logit-diff.")] = None,
    k: CountOption = 20,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Score one prompt and print its most influential (token, latent) pairs; nothing is stored.

    Example: `gradsae score --model M --sae S "The capital of France is" --objective top-token:logit`
    """
    _quiet_transformers()
    from gradsae_fast.prompt import score_prompt

    table = score_prompt(
        text,
        model=model,
        sae=SaeConfig(path=sae, site=site),
        answer=answer,
        contrast=_pair(contrast),
        score=ScoreConfig(preset=preset, objectives=(objective,) if objective else ()),  # type: ignore[arg-type]
    )
    render.show_table(table.slice(0, _positive(k)), format, output)


@app.command()
def contrast(
    store: Store,
    a: Annotated[str, typer.Option(help="Condition of the first group.", show_default=False)],
    b: Annotated[str, typer.Option(help="Condition of the second group.", show_default=False)],
    by: ByOption = "influence",
    order: Annotated[str, typer.Option(help="difference, effect_size, a or b.")] = "difference",
    k: CountOption = 20,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    include_special: MaskedOption = None,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which latents differ most between two groups of documents.

    Example: `gradsae contrast speeches.gradsae --a party=Republican --b party=Democratic`
    """
    table = ranking.contrast(
        open_scores(store),
        a=a,
        b=b,
        by=by,
        order=order,
        k=k,
        site=site,
        objective=objective,
        include_special=include_special,
    )
    render.show_table(table, format, output)


@app.command()
def info(
    store: Store,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a store holds: run, SAEs, gate, progress, size.

    Example: `gradsae info speeches.gradsae`
    """
    render.show_info(open_scores(store), as_json=json)


@app.command()
def verify(
    store: Store,
    quick: Annotated[bool, typer.Option("--quick", help="Existence, lengths and metadata only.")] = False,
) -> None:
    """Read everything and name what is damaged; exit status 1 where something is.

    Example: `gradsae verify speeches.gradsae`
    """
    from gradsae_fast.store import verify as find_faults

    faults = find_faults(store, quick=quick)
    render.show_faults(faults)
    if faults:
        raise typer.Exit(1)


@app.command()
def repair(store: Store) -> None:
    """Drop damaged segments, so that the same extract command computes exactly those again.

    Example: `gradsae repair speeches.gradsae`
    """
    from gradsae_fast.store import repair as drop_damaged

    render.show_repair(drop_damaged(store))


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the demo.", show_default="./gradsae-demo")] = None,
) -> None:
    """Do the whole job in a minute: a tiny language model and SAE, two groups of speeches, rankings.

    Example: `gradsae demo`
    """
    _quiet_transformers()
    from gradsae_fast.demo import run_demo

    run_demo(out or Path("gradsae-demo"))


def main() -> None:
    """Run the command line."""
    app(prog_name="gradsae")


def _configure(
    path: Path | None, options: dict[str, dict[str, Any]], saes: list[str], sites: list[str]
) -> ExtractConfig:
    """The file's settings with the options that were given on top."""
    given = {name: {key: v for key, v in table.items() if v is not None} for name, table in options.items()}
    overrides: dict[str, Any] = {name: table for name, table in given.items() if table}
    if sites and len(sites) != len(saes):
        raise ConfigError(f"got {len(sites)} --site for {len(saes)} --sae; expected one each, in the same order.")
    if saes:
        overrides["sae"] = [{"path": sae} | ({"site": sites[index]} if sites else {}) for index, sae in enumerate(saes)]
    return load_config(path, overrides) if path else config_from_tables(overrides)


def _carry_out(config: ExtractConfig, *, dry_run: bool) -> None:
    _quiet_transformers()
    from gradsae_fast import estimate as costs
    from gradsae_fast import extract as line

    if dry_run:
        render.show_estimate(costs.estimate(config))
        return
    with render.progress() as bar:
        report = line.extract(config, on_message=bar.message, on_progress=bar.update)
    render.show_report(report)


def _quiet_transformers() -> None:
    """One progress bar is enough: ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _positive(k: int) -> int:
    if k < 1:
        raise QueryError(f"-k is {k}; expected 1 or more rows.")
    return k


def _pair(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2:
        raise QueryError(f"--contrast is {text!r}; expected two continuations and a comma, like ' Paris, Rome'.")
    return parts[0], parts[1]
