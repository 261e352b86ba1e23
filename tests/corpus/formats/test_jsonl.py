import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

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


def test_all_spellings_of_a_jsonl_file_give_the_same_documents(tmp_path: Path) -> None:
    content = jsonl(ROWS)
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.NDJSON").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content[:30]) + gzip.compress(content[30:]))
    half = zstandard.ZstdCompressor(write_checksum=True)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    (tmp_path / "a.jsonl.zst").write_bytes(half.compress(content[:30]) + skippable + half.compress(content[30:]))
    for name in ("a.jsonl", "a.NDJSON", "a.jsonl.gz", "a.jsonl.zst"):
        first, second = open_corpus(tmp_path / name)
        assert (first.key, first.text, first.metadata) == ("a", "one", {"year": 1790})
        assert (second.key, second.text, second.source) == ("b", "zwei é", name)
        assert second.metadata == {"year": 1791, "tags": ["x", {"y": None}]}


def test_a_line_of_ten_megabytes_is_read_whole(tmp_path: Path) -> None:
    text = "häuser " * 1_500_000
    content = jsonl([{"text": text}, {"text": "after"}])
    (tmp_path / "long.jsonl").write_bytes(content)
    (tmp_path / "long.jsonl.zst").write_bytes(zstandard.compress(content))
    for name in ("long.jsonl", "long.jsonl.zst"):
        long, after = texts(open_corpus(tmp_path / name))
        assert long == text
        assert after == "after"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "b\n', r"x\.jsonl, line 2: got malformed JSON .*expected one JSON object a line"),
        (b'{"text": "a"}\n\n["a"]\n', r"x\.jsonl, line 3: got a JSON array, expected an object"),
        (b"null\n", r"line 1: got a JSON null, expected an object"),
        (b'"text"\n', r"line 1: got a JSON string"),
        (b'{"body": "a", "n": 1}\n', r"line 1: got a row without the column 'text'; its columns are: 'body', 'n'"),
        (b"{}\n", r"without the column 'text'; its columns are: none at all"),
        (b'{"text": null}\n', r"line 1: got null in the column 'text', expected a string"),
        (b'{"text": 3}\n', r"line 1: got int '3' in the column 'text', expected a string"),
        (
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            r"line 2: got the byte 0xe9 at byte 24 of the file \(byte 10 of the line",
        ),
        (b'\xef\xbb\xbf{"text": "\xff"}\n', r"line 1: got the byte 0xff at byte 13 of the file"),
        (b'{"text": "\\ud800"}\n', r"line 1: got the lone surrogate U\+D800 at character 0"),
        (b'{"text": "a", "m": "\\ud800"}\n', r"line 1: got the lone surrogate"),
        (b'{"text": "a", "id": null}\n', r"line 1: got None in the id column 'id'"),
        (b'{"text": "a", "id": 1.5}\n', r"line 1: got 1\.5 in the id column 'id'"),
        (b'{"text": "a", "id": ""}\n', r"line 1: got '' in the id column 'id'"),
        (b'{"text": "a", "m": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", r"line 1: got m"),
        (b'{"text": "a", "m": ' + b"[" * 700 + b"]" * 700 + b"}\n", r"line 1: got m"),
        (b"", r"x\.jsonl: got a file without rows"),
        (b"\n \n", r"x\.jsonl: got a file without rows"),
    ],
)
def test_a_bad_line_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(open_corpus(tmp_path / "x.jsonl"))


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "first"}]) + b"broken\n")
    documents: Iterator[Document] = iter(open_corpus(tmp_path / "a.jsonl"))
    assert next(documents).text == "first"
    with pytest.raises(CorpusError, match="line 2"):
        next(documents)
