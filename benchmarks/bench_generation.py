"""Greedy generation with latents masked: one prompt at a time or in a batch, with and without the key-value cache.

Every variant answers the same prompts under the same masks, and all of them must give the same tokens before anything
is timed. The variants take turns; medians and ratios to one at a time without a cache are printed. Every prompt is
generated to the full length, so that all variants do the same steps.

    python benchmarks/bench_generation.py --model MODEL --sae SAE --questions QUESTIONS --prompts 16 --max-new-tokens 8

prints a markdown table for a model of your own; under pytest the shipped demo model is used.
"""

import argparse
import dataclasses
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast.config import ModelConfig, SaeConfig, ScoreConfig
from gradsae_fast.demo import ASSETS
from gradsae_fast.experiment.generate import Prompt, generate
from gradsae_fast.experiment.intervene import Edit, Intervention
from gradsae_fast.experiment.questions import Question, draw_questions, read_questions
from gradsae_fast.experiment.subject import Setting, Subject, load_subject
from gradsae_fast.records import Array

VARIANTS: dict[str, dict[str, Any]] = {
    "one at a time, no cache": {"prompts_per_batch": 1, "use_cache": False},
    "one at a time, cache": {"prompts_per_batch": 1, "use_cache": True},
    "batch, no cache": {"use_cache": False},
    "batch, cache": {"use_cache": True},
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Prompts with one mask each."""

    subject: Subject
    prompts: list[Prompt]
    intervention: Intervention

    def run(self, variant: str) -> list[Array]:
        """The answers of all prompts."""
        options: dict[str, Any] = {"prompts_per_batch": len(self.prompts), **VARIANTS[variant]}
        decoding = dataclasses.replace(self.subject.decoding, **options)
        return generate(self.subject.lm, self.prompts, decoding, self.intervention)

    def verify(self) -> None:
        """All variants say the same. SystemExit where they do not."""
        answers = {variant: self.run(variant) for variant in VARIANTS}
        first, *others = answers.values()
        for other in others:
            for prompt, (answer, same) in enumerate(zip(first, other, strict=True)):
                if not np.array_equal(answer, same):
                    raise SystemExit(f"prompt {prompt}: {answer.tolist()} and {same.tolist()}; nothing was timed.")


def make_workload(model: str, sae: str, questions: list[Question], max_new_tokens: int) -> Workload:
    """Ten random latents are masked at each prompt, the reconstruction is spliced in everywhere."""
    subject = load_subject(
        Setting(
            model=ModelConfig(path=model),
            sae=SaeConfig(path=sae),
            questions="benchmark",
            score=ScoreConfig(preset="paper"),
            stop=(),
            max_new_tokens=max_new_tokens,
        )
    )
    # No stop at all: a variant must not win by answers that end early.
    subject = dataclasses.replace(subject, decoding=dataclasses.replace(subject.decoding, stop_ids=frozenset()))
    prompts = [subject.prompt(document) for document in subject.tokenise(questions)]
    rng = np.random.default_rng(0)
    edits = [Edit(drop_K=rng.permutation(subject.sited.sae.num_latents)[:10]) for _ in prompts]
    return Workload(subject=subject, prompts=prompts, intervention=Intervention(subject.sited, subject.method, edits))


def compare(workload: Workload, rounds: int) -> dict[str, float]:
    """Median seconds of each variant, taking turns; the check before is the warm-up."""
    workload.verify()
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, times in seconds.items():
            started = time.perf_counter()
            workload.run(variant)
            times.append(time.perf_counter() - started)
    return {variant: statistics.median(times) for variant, times in seconds.items()}


def demo_questions(count: int) -> list[Question]:
    """The beginnings of the demo's speeches, of different lengths, as prompts without a right answer."""
    lines = (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:count]]
    return [
        Question(key=str(index), prompt=text[: 200 + 20 * index], answers=("none",)) for index, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def workload() -> Workload:
    torch.set_num_threads(1)  # tiny matrices gain nothing from threads, and barriers wait on a busy machine
    made = make_workload(str(ASSETS / "model"), str(ASSETS / "sae"), demo_questions(4), max_new_tokens=6)
    made.verify()
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def bench_generation(benchmark: Any, workload: Workload, variant: str) -> None:
    answers = benchmark(lambda: workload.run(variant))
    assert [len(answer) for answer in answers] == [6] * len(workload.prompts)


def main() -> None:
    """Print the table for the model, SAE and questions that were given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(ASSETS / "model"))
    parser.add_argument("--sae", default=str(ASSETS / "sae"))
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    questions = (
        draw_questions(read_questions(options.questions), options.prompts, 0)
        if options.questions
        else demo_questions(options.prompts)
    )
    workload = make_workload(options.model, options.sae, questions, options.max_new_tokens)
    seconds = compare(workload, options.rounds)
    slowest = seconds["one at a time, no cache"]
    lengths = [len(prompt.token_ids) for prompt in workload.prompts]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {workload.subject.lm.device}; {len(lengths)} "
        f"prompts of {min(lengths)} to {max(lengths)} tokens, {options.max_new_tokens} new tokens each; "
        f"median of {options.rounds} turns"
    )
    print("| | seconds | new tokens/s | ratio |\n|---|---|---|---|")
    for variant, time_taken in seconds.items():
        rate = len(lengths) * options.max_new_tokens / time_taken
        print(f"| {variant} | {time_taken:.2f} | {rate:.1f} | {slowest / time_taken:.2f} |")


if __name__ == "__main__":
    main()
