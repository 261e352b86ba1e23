"""The verb `gradsae synthetic`: does the model take a sum of latents for one of its own hidden states?"""

from pathlib import Path
from typing import Annotated

import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import FormatOption, OutputOption, Store, on_disk
from gradsae_fast.errors import ConfigError
from gradsae_fast.terminal import tell


def synthetic(
    store: Store,
    tokens: Annotated[int, typer.Option(help="Tokens drawn from the store's texts; each gives nine paths.")] = 24,
    steps: Annotated[int, typer.Option(help="Steps of a path.")] = 100,
    step: Annotated[float | None, typer.Option(help="Length of a step; default: the longest path / steps.")] = None,
    min_context: Annotated[int, typer.Option(help="Tokens before a drawn one, at least.")] = 8,
    pool_tokens: Annotated[int, typer.Option(help="Real hidden states to draw targets from, at most.")] = 4096,
    steps_per_pass: Annotated[int, typer.Option(help="Steps of one forward pass: bounds memory.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    site: Annotated[str | None, typer.Option(help="Site, where the store has several.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model lies now; default: as recorded.")] = None,
    sae: Annotated[str | None, typer.Option(help="Where the SAE lies now; default: as recorded.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for curves, summary and a plot.", parser=on_disk)] = None,
    format: FormatOption = "table",
    output: OutputOption = None,
) -> None:
    """Move hidden states towards real, Gaussian and composed ones, and read where the output gives way.

    Example: `gradsae synthetic speeches.gradsae --tokens 24 --out synthetic`
    """
    import torch

    from gradsae_fast.synthetic.experiment import Settings, run_synthetic, write_report

    render.quiet_transformers()
    _make_folder(out)
    if threads is not None:
        torch.set_num_threads(threads)
    report = run_synthetic(
        store,
        settings=Settings(
            tokens=tokens,
            num_steps=steps,
            step=step,
            min_context=min_context,
            pool_tokens=pool_tokens,
            steps_per_pass=steps_per_pass,
            seed=seed,
        ),
        site=site,
        model=model,
        sae=sae,
        device=device,
        on_message=tell,
    )
    for path in write_report(report, out) if out is not None else ():
        typer.echo(f"wrote {path}", err=True)
    render.show_table(report.summary, format, output)


def _make_folder(out: Path | None) -> None:
    """Make the folder of the results now: to find that it cannot be made costs the whole sweep later."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be a folder ({error.strerror}); give another place.") from error
