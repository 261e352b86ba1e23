"""The verb `gradsae describe`: which tokens latents promote, and their input and output scores."""

from typing import Annotated

import pyarrow as pa
import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import FormatOption, ObjectiveOption, OutputOption, SiteOption, Store


def describe(
    store: Store,
    latent: Annotated[list[int] | None, typer.Option(help="Number of a latent; repeat for more.")] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Without --latent: so many, by influence.", show_default="20")
    ] = None,
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

    Example: `gradsae describe speeches.gradsae --latent 123 --tokens 10`
    """
    from gradsae_fast.describe import describe as tabulate

    render.check_output(format, output)
    render.quiet_transformers()
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


def in_cells(table: pa.Table) -> pa.Table:
    """The table with one text for each list, for people and csv: tokens in quotes, without their effects."""
    for side in ("promoted", "suppressed"):
        texts = [" ".join(map(repr, tokens)) for tokens in table[side].to_pylist()]
        table = table.set_column(table.schema.get_field_index(side), side, pa.array(texts, pa.string()))
    return table.drop_columns(["promoted_effect", "suppressed_effect"])
