"""The tiny model as a subject of experiments, with questions that it answers right because its answers are the key."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.config import ModelConfig, SaeConfig, ScoreConfig
from gradsae_fast.experiment.answered import AnsweredSet, answer_ids, find_answered, to_text
from gradsae_fast.experiment.intervene import Edit
from gradsae_fast.experiment.questions import Question
from gradsae_fast.experiment.subject import Setting, Subject, load_subject, with_sink_limit

MakeSubject = Callable[..., Subject]

PROMPTS = [
    "The state of the union",
    "We must build roads and schools, for the children",
    "Peace abroad and work at home: that is our duty to the world. Taxes",
    "naïve hopes become laws",
    "the treasury keeps its promise to",
    "Farms grow, and the people of the states",
]


@pytest.fixture
def make_subject(tiny_model_folder: Path, write_sae: Callable[..., Path]) -> MakeSubject:
    """A subject on the tiny model; keyword arguments go into its setting, those of the SAE as `sae`."""

    def build(
        preset: str = "paper", objective: str | None = None, *, sae: dict[str, Any] | None = None, **options: Any
    ) -> Subject:
        score = ScoreConfig(preset=preset, objectives=(objective,) if objective else (), sink_norm_ratio=1.5)  # type: ignore[arg-type]
        setting = Setting(
            model=ModelConfig(path=str(tiny_model_folder)),
            sae=SaeConfig(path=str(write_sae(**(sae or {})))),
            questions="none",
            score=score,
            **{"max_new_tokens": 6, "prompts_per_batch": 4, "stop": (".",), **options},
        )
        return load_subject(setting)

    return build


def ask(subject: Subject, prompts: list[str] = PROMPTS) -> AnsweredSet:
    """The prompts as questions whose right answer is what the subject says unmasked; two share each context."""
    questions = [
        Question(key=str(index), prompt=prompt, answers=("",), context=f"context {index // 2}")
        for index, prompt in enumerate(prompts)
    ]
    documents = subject.tokenise(questions)
    ready = with_sink_limit(subject, documents)
    answers = answer_ids(ready, [ready.prompt(document) for document in documents], [Edit()] * len(documents))
    return find_answered(
        subject,
        [
            dataclasses.replace(one, answers=(to_text(subject, ids),))
            for one, ids in zip(questions, answers, strict=True)
        ],
    )
