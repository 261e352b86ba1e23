"""Questions come from jsonl rows or from the SQuAD format, and bad files say what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.errors import CorpusError
from gradsae_fast.experiment.questions import draw_questions, read_questions


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_rows_with_a_prompt_keep_it_and_rows_with_a_question_fill_the_template(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        {"id": "a", "prompt": "2 + 2 =", "answer": "4", "context": "sums"},
        "",
        {"context": "A {b} c.", "question": "Who is {context}?", "answers": ["X", "Y", "X"]},
    )
    first, second = read_questions(path, template="C: {context}\nQ: {question} {x}")
    assert (first.key, first.prompt, first.answers, first.context) == ("a", "2 + 2 =", ("4",), "sums")
    assert second.prompt == "C: A {b} c.\nQ: Who is {context}? {x}"
    assert (second.key, second.answers, second.context) == ("2", ("X", "Y"), "A {b} c.")


def test_the_squad_format_gives_every_answered_question_with_all_its_answers(tmp_path: Path) -> None:
    asked = [
        {
            "id": "1",
            "question": "Who?",
            "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann B", "answer_start": 0}],
        },
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
    ]
    squad = {"version": "1.1", "data": [{"title": "T", "paragraphs": [{"context": "Ann B won.", "qas": asked}]}]}
    (question,) = read_questions(write(tmp_path / "dev.json", squad), template="{context} {question}")
    assert (question.key, question.prompt, question.answers) == ("1", "Ann B won. Who?", ("Ann", "Ann B"))


def test_a_draw_is_repeatable_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"{index}?", "answer": "x"} for index in range(50)]
    questions = read_questions(write(tmp_path / "q.jsonl", *rows))
    drawn = draw_questions(questions, 10, seed=1)
    assert drawn == draw_questions(questions, 10, seed=1) != draw_questions(questions, 10, seed=2)
    assert [questions.index(one) for one in drawn] == sorted({questions.index(one) for one in drawn})
    assert draw_questions(questions, 50, seed=1) == draw_questions(questions, None, seed=1) == questions
    with pytest.raises(CorpusError, match="limit is 0"):
        draw_questions(questions, 0, seed=1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"prompt": "a?", "answer": "b"}\n{oops', "line 2 is not valid JSON"),
        ("q.jsonl", "[1, 2]", "line 1 is list"),
        ("q.jsonl", '{"question": "a?", "answer": "b"}', "expected prompt, or context and question"),
        ("q.jsonl", '{"prompt": "a?"}', "has the answer"),
        ("q.jsonl", '{"prompt": "a?", "answers": []}', "has the answer"),
        ("q.jsonl", '{"prompt": "a?", "answer": 3}', "has the answer"),
        ("q.jsonl", "\n", "holds no question"),
        ("q.json", '{"rows": []}', "not in the SQuAD format"),
        ("q.json", '[{"prompt": "a?"}]', "not in the SQuAD format"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_their_fault(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=message) as caught:
        read_questions(tmp_path / name)
    assert name in str(caught.value)


def test_a_missing_file_and_a_template_without_a_question_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    path = write(tmp_path / "q.jsonl", {"context": "a", "question": "b?", "answer": "c"})
    with pytest.raises(CorpusError, match="question"):
        read_questions(path, template="{context}")
