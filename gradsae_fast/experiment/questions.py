"""Questions with accepted answers, read from jsonl rows or from a file in the SQuAD format.

jsonl rows have `prompt` and `answer`, or `context`, `question` and `answer`; `answers` may hold several. Extra columns
are ignored. A SQuAD file is one JSON object whose `data` holds articles, their paragraphs, and `qas`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.errors import CorpusError

DEFAULT_TEMPLATE = "{context}\n\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the model reads, the answers that count as right, and the context that other questions may share."""

    key: str
    prompt: str
    answers: tuple[str, ...]
    context: str | None = None


def read_questions(path: str | Path, *, template: str = DEFAULT_TEMPLATE) -> list[Question]:
    """All questions of a file, in its order. CorpusError for what cannot be read or used.

    `template` makes the prompt of rows that have context and question; rows that have a prompt keep it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"the questions {path} cannot be read: {error}. Give a .jsonl or SQuAD .json file."
        ) from error
    rows = _squad_rows(path, text) if Path(path).suffix == ".json" else _jsonl_rows(path, text)
    questions = [_question(row, f"{path}, question {index}", index, template) for index, row in enumerate(rows, 1)]
    if not questions:
        raise CorpusError(f"{path} holds no question. Expected one JSON row each, or the SQuAD format.")
    return questions


def draw_questions(questions: list[Question], limit: int | None, seed: int) -> list[Question]:
    """`limit` questions at random, in their order; all of them where `limit` is None or not smaller."""
    if limit is None or limit >= len(questions):
        return questions
    if limit < 1:
        raise CorpusError(f"limit is {limit}; expected at least 1 question.")
    chosen = np.random.default_rng(seed).choice(len(questions), size=limit, replace=False)
    return [questions[index] for index in sorted(chosen)]


def _jsonl_rows(path: str | Path, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = _parsed(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number} is {type(row).__name__}; expected a JSON object per line.")
            yield row


def _squad_rows(path: str | Path, text: str) -> Iterator[Mapping[str, Any]]:
    tables = _parsed(text, str(path))
    try:
        for article in tables["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [answer["text"] for answer in asked["answers"]]
                    # SQuAD v2 has questions without an answer: there is nothing that a model could get right.
                    if answers:
                        yield {**asked, "context": paragraph["context"], "answers": answers}
    except (KeyError, TypeError) as error:
        raise CorpusError(
            f"{path} is not in the SQuAD format: {error!r}. Expected data > paragraphs > context and qas > id, "
            "question, answers > text. Rows of their own belong into a .jsonl file."
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where} is not valid JSON: {error}. Mend the file.") from error


def _question(row: Mapping[str, Any], where: str, index: int, template: str) -> Question:
    context = row.get("context")
    if isinstance(row.get("prompt"), str):
        prompt = row["prompt"]
    elif isinstance(context, str) and isinstance(row.get("question"), str):
        prompt = _filled(template, context, row["question"])
    else:
        raise CorpusError(f"{where} has columns {sorted(row)}; expected prompt, or context and question, as text.")
    answers = row["answers"] if "answers" in row else [row.get("answer")]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise CorpusError(
            f"{where} has the answer {answers!r}; expected `answer` as text, or `answers` as a list of it."
        )
    return Question(
        key=str(row.get("id", index)),
        prompt=prompt,
        # An answer is listed once for each annotator who gave it.
        answers=tuple(dict.fromkeys(answers)),
        context=context if isinstance(context, str) else None,
    )


def _filled(template: str, context: str, question: str) -> str:
    """The template with its two fields; str.replace leaves any other brace as it is."""
    if "{question}" not in template:
        raise CorpusError(
            f"the template {template!r} has no {{question}}; expected {{context}} and {{question}} in it."
        )
    head, _, tail = template.partition("{question}")
    return head.replace("{context}", context) + question + tail.replace("{context}", context)
