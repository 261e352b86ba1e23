"""The verb `gradsae certify`: how well a store's influences agree with exact ablation."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import FormatOption, OutputOption, Store
from gradsae_fast.terminal import tell

if TYPE_CHECKING:
    from gradsae_fast.store.sidecars.certificate import Certificate


def certify(
    store: Store,
    pairs: Annotated[int, typer.Option(help="Pairs of a token and a latent, per site and objective.")] = 200,
    documents: Annotated[int, typer.Option(help="Documents to draw samples from.")] = 6,
    latents_per_document: Annotated[int, typer.Option(help="Latents ablated in a whole document, each.")] = 20,
    min_tokens: Annotated[int, typer.Option(help="Of these, only latents that fire on so many of its tokens.")] = 1,
    dense_share: Annotated[float, typer.Option(help="Dense: fires on more than this share of tokens.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: as in the store's run.")] = None,
    tokens_per_batch: Annotated[int, typer.Option(help="Tokens of one pass of ablated copies.")] = 8192,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Ablate a sample of stored scores exactly, and keep in the store how well they agree; `info` shows it.

    Example: `gradsae certify speeches.gradsae --pairs 200 --documents 6`
    """
    from gradsae_fast.certify import Sampling
    from gradsae_fast.certify import certify as measure

    render.quiet_transformers()
    certificate = measure(
        store,
        sampling=Sampling(
            pairs=pairs,
            documents=documents,
            latents_per_document=latents_per_document,
            min_tokens=min_tokens,
            dense_share=dense_share,
            seed=seed,
        ),
        device=device,
        tokens_per_batch=tokens_per_batch,
        on_message=tell,
    )
    render.show_table(agreement_table(certificate), format, output)


def agreement_table(certificate: "Certificate") -> pa.Table:
    """One row for each agreement; the table's metadata says how the sample was drawn."""
    facts = {**certificate.sampling, "value_deviation": certificate.value_deviation}
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in certificate.agreements])
    return table.replace_schema_metadata({name: json.dumps(value) for name, value in facts.items()})
