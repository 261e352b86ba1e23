"""The verb `gradsae describe`: which tokens latents promote, and their input and output scores."""

from typing import Annotated

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import Progress

from gradsae_fast import render
from gradsae_fast.cli_rank import FormatOption, ObjectiveOption, OutputOption, SiteOption, Store
from gradsae_fast.errors import QueryError
from gradsae_fast.terminal import tell

_BESIDE_ALL = {"store", "every", "tokens", "device"}


def describe(
    context: typer.Context,
    store: Store,
    latent: Annotated[list[int] | None, typer.Option(help="Number of a latent; repeat for more.")] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Without --latent: so many, by influence.", show_default="20")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All latents: keep their tokens and nearest decoder rows in the store.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens to list on each side.")] = 10,
    examples: Annotated[int, typer.Option(help="Documents that an input score looks at, at most.")] = 100,
    no_output_score: Annotated[bool, typer.Option("--no-output-score", help="Leave it out: no forward pass.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="What is steered for the output score.", show_default="In my experience,")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far: so many largest activations.", show_default="10")
    ] = None,
    error_term: Annotated[
        bool | None, typer.Option("--error-term/--no-error-term", help="Steer with the SAE's error; default: method's.")
    ] = None,
    site: SiteOption = None,
    objective: ObjectiveOption = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: as in the store's run.")] = None,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Which tokens latents promote and suppress, and whether they speak of their input or of the output.

    Example: `gradsae describe speeches.gradsae --latent 123 --tokens 10`, or `gradsae describe speeches.gradsae --all`
    """
    render.check_output(format, output)
    render.quiet_transformers()
    if every:
        _refuse_beside_all(context)
        _describe_every(store, tokens, device)
        return
    from gradsae_fast.describe import describe as tabulate

    table = tabulate(
        store,
        latent or None,
        k,
        tokens=tokens,
        examples=examples,
        output_score=not no_output_score,
        prompt=prompt,
        strength=strength,
        error_term=error_term,
        site=site,
        objective=objective,
        device=device,
    )
    render.show_table(in_cells(table) if format in ("table", "csv") else table, format, output)


def _refuse_beside_all(context: typer.Context) -> None:
    """QueryError for an option that was typed although --all has no use for it."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _BESIDE_ALL and source is not None and source.name == "COMMANDLINE":
            raise QueryError(f"{parameter.opts[0]} has no effect beside --all; leave it out")


def _describe_every(store: str, tokens: int, device: str | None) -> None:
    """Show how far it is on a terminal, then a line for each site."""
    from gradsae_fast.describe import describe_every

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        found = describe_every(store, tokens=tokens, device=device, on_message=tell, on_progress=update)
    for site, described in found.items():
        latents, on_each_side = described.promoted_CT.shape
        typer.echo(
            f"{site}: {latents} latents, {on_each_side} promoted and {on_each_side} suppressed tokens of each, "
            f"{described.cosine_CK.shape[1]} nearest decoder rows"
        )


def in_cells(table: pa.Table) -> pa.Table:
    """The table with one text for each list, for people and csv: tokens in quotes, without their effects."""
    for side in ("promoted", "suppressed"):
        texts = [" ".join(map(repr, tokens)) for tokens in table[side].to_pylist()]
        table = table.set_column(table.schema.get_field_index(side), side, pa.array(texts, pa.string()))
    return table.drop_columns(["promoted_effect", "suppressed_effect"])
