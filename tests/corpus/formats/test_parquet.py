import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.errors import CorpusError


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_parquet_gives_the_same_documents_as_jsonl(tmp_path: Path) -> None:
    rows = [{"id": f"k{i}", "text": f"text {i}", "score": None if i % 2 else i / 2} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=70)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
    a, b = open_corpus(tmp_path / "rows.parquet"), open_corpus(str(tmp_path / "rows.jsonl"))
    assert [(d.key, d.text, d.row, d.metadata) for d in a] == [(d.key, d.text, d.row, d.metadata) for d in b]


def test_parquet_errors_name_row_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(CorpusError, match=r"x\.parquet, row 1 \(counted from 0\): got null"):
        list(open_corpus(path))
    with pytest.raises(CorpusError, match=r"row 0 .* without the column 'body'; its columns are: 'text'"):
        list(open_corpus(path, text_column="body"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(CorpusError, match="file without rows"):
        list(open_corpus(path))
    binary = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, binary.buffers())}), path)
    with pytest.raises(CorpusError, match="not UTF-8"):
        list(open_corpus(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match="pyarrow cannot read"):
        list(open_corpus(path))
