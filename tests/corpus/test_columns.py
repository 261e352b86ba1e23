from typing import Any

import pytest

from gradsae_fast.corpus.read import Corpus, open_corpus
from gradsae_fast.errors import ConfigError, CorpusError
from gradsae_fast.records import Document


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus]


def test_columns_choose_key_text_prompt_answer_contrast_and_metadata() -> None:
    row = {"id": 1, "name": "n", "q": "Capital?", "a": " Paris", "y1": " Paris", "y2": " Rome", "k": 3, "text": "t"}
    (document,) = open_corpus(
        [row], id_column="name", prompt_column="q", answer_column="a", contrast_columns=("y1", "y2")
    )
    assert (document.key, document.text, document.answer) == ("n", "Capital?", " Paris")
    assert document.full_text == "Capital? Paris"
    assert document.contrast == (" Paris", " Rome")
    assert document.metadata == {"id": 1, "k": 3, "text": "t"}
    (document,) = open_corpus([row], text_column="q", metadata_columns=["k"])
    assert (document.key, document.text, document.answer, document.metadata) == ("1", "Capital?", None, {"k": 3})


def test_settings_that_contradict_or_have_no_effect_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt_column": "q"}, "name the answer column too"),
        ({"answer_column": "a"}, "name the prompt column too"),
        ({"prompt_column": "q", "answer_column": "a", "text_column": "t"}, "leave the text column out"),
        ({"contrast_columns": ("a",)}, "expected the names of two columns"),
        ({"metadata_columns": "party"}, r"expected a list of names"),
        ({"max_documents": 0}, "expected at least 1"),
        ({"split": "test"}, "only datasets of the hub"),
        ({"subset": "en"}, "only datasets of the hub"),
    ]
    for settings, message in cases:
        with pytest.raises(ConfigError, match=message):
            open_corpus(["a"], **settings)


def test_empty_answers_and_contrasts_are_refused() -> None:
    row = {"q": "a", "a": "", "y": "b"}
    with pytest.raises(CorpusError, match="empty string in the column 'a'"):
        list(open_corpus([row], prompt_column="q", answer_column="a"))
    with pytest.raises(CorpusError, match="empty string in the column 'a'"):
        list(open_corpus([row], text_column="q", contrast_columns=("y", "a")))
    bad = Document(key="k", text="t", source="s", row=0, answer="", metadata={})
    with pytest.raises(CorpusError, match="empty answer"):
        list(open_corpus([bad]))


def test_empty_and_whitespace_texts_are_documents() -> None:
    assert texts(open_corpus([{"text": ""}, {"text": " \n"}, {"text": "\0"}])) == ["", " \n", "\0"]
