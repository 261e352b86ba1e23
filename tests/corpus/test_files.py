import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.corpus.read import Corpus, open_corpus
from gradsae_fast.errors import CorpusError

ROWS = [
    {"id": "a", "text": "one", "year": 1790},
    {"id": "b", "text": "zwei é", "year": 1791, "tags": ["x", {"y": None}]},
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus]


def test_a_folder_of_texts_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "d.md",
        "a/z.md",
        "a/b.txt",
        "a/c.txt",
        ".hidden.txt",
        ".git/x.txt",
        "picture.png",
        "c.txt.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(name.encode()) if name.endswith("gz") else name.encode())
    corpus = open_corpus(tmp_path)
    assert texts(corpus) == ["a/b.txt", "a/c.txt", "a/z.md", "b.txt", "c.txt.gz", "d.md"]
    assert [document.key for document in corpus] == texts(corpus)


def test_shards_of_a_folder_are_read_by_name_and_rows_get_position_keys(tmp_path: Path) -> None:
    (tmp_path / "s-2.jsonl").write_bytes(jsonl([{"text": "c"}]))
    (tmp_path / "s-1.jsonl.gz").write_bytes(gzip.compress(jsonl([{"text": "a"}, {"text": "b"}])))
    (tmp_path / "cfg.json").write_text("{}")
    keys = [(document.key, document.text) for document in open_corpus(tmp_path)]
    assert keys == [("s-1.jsonl.gz:0", "a"), ("s-1.jsonl.gz:1", "b"), ("s-2.jsonl:0", "c")]


def test_a_file_removed_after_opening_is_an_error(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.parquet"):
        path = tmp_path / name
        path.write_bytes(jsonl(ROWS))
        corpus = open_corpus(path)
        path.unlink()
        with pytest.raises(CorpusError, match="no such file"):
            list(corpus)
        with pytest.raises(CorpusError, match="cannot be read"):
            corpus.manifest()


def test_sources_that_are_no_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no such file or folder"):
        open_corpus(tmp_path / "missing.jsonl")
    with pytest.raises(CorpusError, match=r"no such file or folder"):
        open_corpus("missing.jsonl")
    with pytest.raises(CorpusError, match=r"no such file or folder"):
        open_corpus("A whole text in place of a path. " * 200)
    with pytest.raises(CorpusError, match=r"without corpus files, expected jsonl"):
        open_corpus(tmp_path)
    (tmp_path / "x.csv").write_text("text\na\n")
    with pytest.raises(CorpusError, match=r"x\.csv', expected jsonl .*convert or rename"):
        open_corpus(tmp_path / "x.csv")
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(CorpusError, match=r"files of several kinds .*folder of their own"):
        open_corpus(tmp_path)
    with pytest.raises(CorpusError, match=r"got a dict, expected an iterable of rows"):
        open_corpus({"text": "a"})
    with pytest.raises(CorpusError, match=r"got a int, expected"):
        open_corpus(3)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match=r"rows: got an empty corpus"):
        list(open_corpus([]))
    with pytest.raises(CorpusError, match=r"row 1 .*got a int, expected a str, a mapping or a Document"):
        list(open_corpus(["a", 3]))  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_with_a_password_is_not_repeated(kind: Any) -> None:
    with pytest.raises(CorpusError, match=r"got the https:// address as the corpus \(not repeated here") as caught:
        open_corpus(kind("https://user:hunter2@host.example/speeches.jsonl"))
    assert "hunter2" not in str(caught.value)
