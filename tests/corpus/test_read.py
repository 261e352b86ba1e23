import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.corpus.read import Corpus, open_corpus
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import Document

ROWS = [
    {"id": "a", "text": "one", "year": 1790},
    {"id": "b", "text": "zwei é", "year": 1791, "tags": ["x", {"y": None}]},
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus]


def test_iterables_of_str_mappings_and_documents_are_corpora() -> None:
    own = Document(key="own", text="three", source="mine", row=5, metadata={"when": date(2000, 1, 2)})
    documents = list(open_corpus(["one", {"text": "two", "id": np.int64(7), "w": np.float32("nan")}, own]))
    assert [document.key for document in documents] == ["rows:0", "7", "own"]
    assert documents[1].metadata == {"w": None}
    assert documents[2].metadata == {"when": "2000-01-02"}
    assert (documents[2].source, documents[2].row) == ("mine", 5)


def test_a_one_shot_iterator_can_be_read_twice() -> None:
    corpus = open_corpus(text for text in ("a", "b"))
    assert texts(corpus) == texts(corpus) == ["a", "b"]


def test_max_documents_stops_before_a_bad_row() -> None:
    assert texts(open_corpus(["a", "b", None], max_documents=2)) == ["a", "b"]  # type: ignore[list-item]


def test_a_metadata_column_that_no_row_has_is_an_error() -> None:
    rows = [{"text": "a"}, {"text": "b", "party": "x"}]
    assert [document.metadata for document in open_corpus(rows, metadata_columns=["party"])] == [
        {"party": None},
        {"party": "x"},
    ]
    with pytest.raises(CorpusError, match=r"metadata columns \['partei'\], which none of the 2 rows has"):
        list(open_corpus(rows, metadata_columns=["party", "partei"]))


def test_the_manifest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    manifests = []
    for folder, rows in (("here", ROWS), ("there", ROWS), ("other", ROWS[:1])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(jsonl(rows))
        manifests.append(open_corpus(tmp_path / folder).manifest())
    assert manifests[0] == manifests[1] != manifests[2]
    assert json.loads(json.dumps(manifests[0])) == manifests[0]
    (file,) = manifests[0]["files"]
    assert (file["name"], file["size"], len(file["sha256"])) == ("a.jsonl", len(jsonl(ROWS)), 64)
    assert open_corpus(tmp_path / "here", text_column="id").manifest() != manifests[0]
    assert open_corpus(tmp_path / "here", max_documents=1).manifest() != manifests[0]


def test_the_manifest_is_the_same_after_a_journey_through_json() -> None:
    corpus = open_corpus([{**ROWS[0], "y": "b"}], contrast_columns=("text", "y"), metadata_columns=("year",))
    manifest = corpus.manifest()
    assert json.loads(json.dumps(manifest)) == manifest


def test_the_manifest_of_rows_follows_every_value() -> None:
    same = open_corpus(iter(ROWS)).manifest()
    assert open_corpus(ROWS).manifest() == same
    assert open_corpus([ROWS[0], {**ROWS[1], "year": 1792}]).manifest() != same
    assert open_corpus(ROWS[::-1]).manifest() != same


def test_the_state_of_the_union_addresses_are_233_documents(shared_data: Path) -> None:
    documents = list(open_corpus(shared_data / "sotu.jsonl.gz"))
    assert len(documents) == len({document.key for document in documents}) == 233
    assert documents[0].key == "1790_george_washington_n"
    assert set(documents[0].metadata) == {"year", "president", "party"}
