"""The verbs `gradsae experiment masking|steering`: the paper's experiments on questions of your own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradsae_fast import render
from gradsae_fast.cli_rank import on_disk
from gradsae_fast.config import ModelConfig, SaeConfig, ScoreConfig
from gradsae_fast.errors import ConfigError

if TYPE_CHECKING:
    from gradsae_fast.experiment.answered import AnsweredSet
    from gradsae_fast.experiment.report import Report

experiment = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Mask or exchange latents while a model answers questions."
)

ModelOption = Annotated[str, typer.Option("--model", help="Language model: folder or hub id.", show_default=False)]
SaeOption = Annotated[str, typer.Option("--sae", help="SAE: folder, file or hub id.", show_default=False)]
QuestionsOption = Annotated[
    Path, typer.Option("--questions", help="jsonl (prompt, or context and question; answer) or SQuAD json.")
]
SiteOption = Annotated[str | None, typer.Option("--site", help="Site; default: the SAE's metadata.")]
SizeOption = Annotated[list[str] | None, typer.Option("-k", "--k", help="Size of a set: a number or 50%; repeat.")]
MethodOption = Annotated[list[str] | None, typer.Option("--method", help="influence or activation; default: both.")]
PresetOption = Annotated[str, typer.Option("--preset", help="paper, authors-code, gradsae or attribution-patching.")]
ObjectiveOption = Annotated[str | None, typer.Option("--objective", help="Default: the preset's.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Questions to try, drawn at random.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the draws and of the bootstrap.")]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="Prompt with {context} and {question}; \\n is a line break.")
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="An answer ends before it; repeat. Default: a line break.")
]
BosOption = Annotated[str, typer.Option("--bos", help="auto (as the SAE was trained), always or never.")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Length limit of an answer.")]
BatchOption = Annotated[int, typer.Option("--prompts-per-batch", help="Prompts that are generated together.")]
DensityOption = Annotated[
    float, typer.Option("--max-density", help="Leave out latents that fire on a larger share of the prompt tokens.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for json, csv, markdown and a plot.", parser=on_disk),
]


@experiment.command("masking")
def masking(
    model: ModelOption,
    sae: SaeOption,
    questions: QuestionsOption,
    site: SiteOption = None,
    k: SizeOption = None,
    method: MethodOption = None,
    preset: PresetOption = "paper",
    objective: ObjectiveOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 42,
    template: TemplateOption = None,
    stop: StopOption = None,
    bos: BosOption = "auto",
    max_new_tokens: TokensOption = 16,
    prompts_per_batch: BatchOption = 16,
    max_density: DensityOption = 1.0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    out: OutOption = None,
) -> None:
    """Set the TopK or BottomK latents of each question to zero at all tokens, and see what its answer loses.

    Example: `gradsae experiment masking --model M --sae S --questions questions.jsonl --limit 100 --out masking`
    """
    from gradsae_fast.experiment.masking import run_masking

    found = _find(
        model=model,
        sae=sae,
        questions=questions,
        site=site,
        k=k,
        method=method,
        preset=preset,
        objective=objective,
        limit=limit,
        seed=seed,
        template=template,
        stop=stop,
        bos=bos,
        max_new_tokens=max_new_tokens,
        prompts_per_batch=prompts_per_batch,
        max_density=max_density,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    _show(run_masking(found), out)


@experiment.command("steering")
def steering(
    model: ModelOption,
    sae: SaeOption,
    questions: QuestionsOption,
    site: SiteOption = None,
    k: SizeOption = None,
    method: MethodOption = None,
    strength: Annotated[
        str, typer.Option("--strength", help="Injected value: mean-active (over active tokens) or mean (over all).")
    ] = "mean-active",
    preset: PresetOption = "paper",
    objective: ObjectiveOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 42,
    template: TemplateOption = None,
    stop: StopOption = None,
    bos: BosOption = "auto",
    max_new_tokens: TokensOption = 16,
    prompts_per_batch: BatchOption = 16,
    max_density: DensityOption = 1.0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    out: OutOption = None,
) -> None:
    """Take each question's TopK latents out, put those of another question in, and see whether its answer comes.

    Example: `gradsae experiment steering --model M --sae S --questions questions.jsonl --limit 100 --out steering`
    """
    from gradsae_fast.experiment.steering import run_steering

    if strength not in ("mean-active", "mean"):
        raise ConfigError(f"strength is {strength!r}; expected mean-active or mean.")
    found = _find(
        model=model,
        sae=sae,
        questions=questions,
        site=site,
        k=k,
        method=method,
        preset=preset,
        objective=objective,
        limit=limit,
        seed=seed,
        template=template,
        stop=stop,
        bos=bos,
        max_new_tokens=max_new_tokens,
        prompts_per_batch=prompts_per_batch,
        max_density=max_density,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    _show(run_steering(found, strength=strength), out)  # type: ignore[arg-type]


def _find(
    *,
    model: str,
    sae: str,
    questions: Path,
    site: str | None,
    k: list[str] | None,
    method: list[str] | None,
    preset: str,
    objective: str | None,
    limit: int | None,
    seed: int,
    template: str | None,
    stop: list[str] | None,
    bos: Any,
    max_new_tokens: int,
    prompts_per_batch: int,
    max_density: float,
    device: str,
    dtype: Any,
    threads: int | None,
) -> "AnsweredSet":
    """Load everything and find the questions that the model answers right."""
    import torch

    from gradsae_fast.experiment.answered import find_answered
    from gradsae_fast.experiment.questions import DEFAULT_TEMPLATE, draw_questions, read_questions
    from gradsae_fast.experiment.selection import PAPER_SIZES, parse_size
    from gradsae_fast.experiment.subject import RANKINGS, Setting, load_subject

    for name in method or ():
        if name not in RANKINGS:
            raise ConfigError(f"method is {name!r}; expected {' or '.join(RANKINGS)}.")
    render.quiet_transformers()
    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(
        model=ModelConfig(path=model, device=device, dtype=dtype),
        sae=SaeConfig(path=sae, site=site),
        questions=str(questions),
        score=ScoreConfig(preset=preset, objectives=(objective,) if objective else ()),  # type: ignore[arg-type]
        rankings=tuple(method) if method else RANKINGS,  # type: ignore[arg-type]
        sizes=tuple(parse_size(text) for text in k) if k else PAPER_SIZES,
        template=DEFAULT_TEMPLATE if template is None else _unescaped(template),
        stop=tuple(_unescaped(text) for text in stop) if stop else ("\n",),
        limit=limit,
        seed=seed,
        bos=bos,
        max_new_tokens=max_new_tokens,
        prompts_per_batch=prompts_per_batch,
        max_density=max_density,
    )
    asked = draw_questions(read_questions(questions, template=setting.template), limit, seed)
    return find_answered(load_subject(setting), asked)


def _unescaped(text: str) -> str:
    """A shell has no easy spelling of a line break."""
    return text.replace("\\n", "\n")


def _show(report: "Report", out: Path | None) -> None:
    from gradsae_fast.experiment.report import to_markdown, write_report

    typer.echo(to_markdown(report))
    if out is not None:
        for path in write_report(report, out):
            typer.echo(f"wrote {path}", err=True)
