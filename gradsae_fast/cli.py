"""The command line: verbs that parse, call and print. Errors are one message, without a traceback.

Exit status: 0 done, 1 an error or a fault found, 2 options that make no sense, 130 interrupted. torch is imported only
by the verbs that run a model.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsae_fast import open_scores, render
from gradsae_fast.cli_append import append
from gradsae_fast.cli_certify import certify
from gradsae_fast.cli_compact import compact
from gradsae_fast.cli_compare import compare
from gradsae_fast.cli_contrast import contrast
from gradsae_fast.cli_describe import describe
from gradsae_fast.cli_drop import drop
from gradsae_fast.cli_experiment import experiment
from gradsae_fast.cli_export import export
from gradsae_fast.cli_extract import extract
from gradsae_fast.cli_index import index
from gradsae_fast.cli_jacobian import jacobian
from gradsae_fast.cli_merge import merge
from gradsae_fast.cli_rank import CountOption, FormatOption, OutputOption, Store, on_disk, rank
from gradsae_fast.cli_report import report
from gradsae_fast.cli_synthetic import synthetic
from gradsae_fast.config import SaeConfig, ScoreConfig
from gradsae_fast.errors import GradsaeError, QueryError
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.generations import read_generations
from gradsae_fast.terminal import say
from gradsae_fast.verdict import show_faults, show_sound
from gradsae_fast.visible import visible_lines

_CONDITIONS = {"where", "a", "b", "contrast_a", "contrast_b"}


class Verbs(typer.core.TyperGroup):
    """Says what went wrong in a verb; what is wrong with the options Typer says by itself, but for repeated ones."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse, for all verbs below, an option that is typed twice although one value counts."""
        _refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)

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
            print(f"error: {visible_lines(str(error))}", file=sys.stderr)
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
app.command()(extract)
app.command()(append)
app.command()(merge)
app.add_typer(rank, name="rank")
app.command()(contrast)
app.command()(compare)
app.command()(report)
app.command()(export)
app.command()(index)
app.command()(drop)
app.command()(compact)
app.command()(describe)
app.command()(certify)
app.add_typer(experiment, name="experiment")
app.add_typer(jacobian, name="jacobian")
app.command()(synthetic)


@app.command()
def score(
    text: Annotated[str, typer.Argument(help="The prompt.", show_default=False)],
    model: Annotated[str, typer.Option(help="Language model: folder or hub id.", show_default=False)],
    sae: Annotated[str, typer.Option(help="SAE: folder, params.npz or hub id.", show_default=False)],
    site: Annotated[str | None, typer.Option(help="Site; default: the SAE's metadata.")] = None,
    preset: Annotated[str, typer.Option(help="gradsae, attribution-patching, paper or authors-code.")] = "gradsae",
    objective: Annotated[str | None, typer.Option(help="What is differentiated; default: the preset's.")] = None,
    reads: Annotated[str | None, typer.Option(help="What a transcoder reads; default: its metadata.")] = None,
    path_steps: Annotated[int, typer.Option(help="Integrated gradients: points of the path.")] = 0,
    answer: Annotated[str | None, typer.Option(help="Answer, for the continuation objectives.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Two continuations y1,y2 for logit-diff.")] = None,
    k: CountOption = 20,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Score one prompt and print its most influential (token, latent) pairs; nothing is stored.

    Example: `gradsae score --model M --sae S "The capital of France is" --objective top-token:logit`
    """
    render.quiet_transformers()
    from gradsae_fast.prompt import score_prompt

    table = score_prompt(
        text,
        model=model,
        sae=SaeConfig(path=sae, site=site, reads=reads),
        answer=answer,
        contrast=_pair(contrast),
        score=ScoreConfig(
            preset=preset,  # type: ignore[arg-type]
            objectives=(objective,) if objective else (),
            path_steps=path_steps,
        ),
    )
    render.show_table(table.slice(0, _positive(k)), format, output)


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
    """Read everything and name what is damaged or missing; exit status 1 where something is.

    That segments are still to be scored is no damage: it is said, and the exit status is 0.

    Example: `gradsae verify speeches.gradsae`
    """
    from gradsae_fast.store import verify as find_faults

    faults = find_faults(store, quick=quick)
    if faults:
        show_faults(faults)
    if faults or not show_sound(open_scores(store)):
        raise typer.Exit(1)


@app.command()
def repair(store: Store) -> None:
    """Drop damaged segments, so that the command that made them computes exactly those again.

    Example: `gradsae repair speeches.gradsae`
    """
    from gradsae_fast.store import repair as drop_damaged

    dropped = drop_damaged(store, tell=say)
    render.show_repair(dropped, read_generations(place_of(store)))


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the demo.", show_default="./gradsae-demo", parser=on_disk),
    ] = None,
) -> None:
    """Do the whole job in a minute: a tiny language model and SAE, two groups of speeches, rankings.

    Example: `gradsae demo`
    """
    render.quiet_transformers()
    from gradsae_fast.demo import run_demo

    run_demo(out or Path("gradsae-demo"))


def main() -> None:
    """Run the command line."""
    app(prog_name="gradsae")


def _refuse_repeated(command: Any, ctx: Any, words: Sequence[str]) -> None:
    """Fail where the parser would let the last of several values win without a word; down to the verb that is meant."""
    _, rest, typed = command.make_parser(ctx).parse_args(args=list(words))
    for option, times in Counter(typed).items():
        if times > 1 and not option.multiple:
            names = " / ".join((*option.opts, *option.secondary_opts))
            joined = "; join conditions by commas: 'party=R, year>=1995'" if option.name in _CONDITIONS else ""
            ctx.fail(f"{names} is given {times} times; expected once, as only the last would count{joined}")
    if rest and isinstance(command, typer.core.TyperGroup):
        name, verb, rest = command.resolve_command(ctx, rest)
        _refuse_repeated(verb, type(ctx)(verb, info_name=name, parent=ctx), rest)


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
