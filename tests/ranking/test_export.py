import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.ranking import contrast, query_of, rank_tokens, write_table
from gradsae_fast.store import ScoreStore


@pytest.fixture
def table(store: ScoreStore) -> pa.Table:
    """A real table with text, counts, floats and NaN."""
    return contrast(store, a="score=s5", b="party=Republican", k=3, site="model.layers.3", objective="next-token")


def test_json_has_the_query_and_the_rows_in_order(table: pa.Table) -> None:
    text = write_table(table, format="json")
    assert text is not None
    document = json.loads(text)
    assert list(document) == ["query", "rows"]
    assert document["query"] == query_of(table)
    assert document["query"]["ranking"] == "contrast"
    assert [row["rank"] for row in document["rows"]] == [1, 2, 3]
    assert list(document["rows"][0]) == table.column_names


def test_json_floats_read_back_as_the_same_floats_and_nan_as_null(table: pa.Table) -> None:
    rows = json.loads(write_table(table) or "")["rows"]
    assert [row["difference"] for row in rows] == table.column("difference").to_pylist()
    assert all(math.isnan(value) for value in table.column("t").to_pylist())
    assert [row["t"] for row in rows] == [None] * 3


def test_csv_has_the_same_rows_with_every_digit_and_empty_fields_for_nan(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert write_table(table, path, "csv") is None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert path.read_text() == write_table(table, format="csv")
    assert list(rows[0]) == table.column_names
    assert [float(row["difference"]) for row in rows] == table.column("difference").to_pylist()
    assert [row["t"] for row in rows] == [""] * 3


def test_parquet_keeps_rows_types_and_metadata(table: pa.Table, tmp_path: Path) -> None:
    write_table(table, tmp_path / "rows.parquet", "parquet")
    read = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert read.schema.equals(table.schema, check_metadata=True)
    for name in table.column_names:
        kept = [None if value != value else value for value in table.column(name).to_pylist()]
        assert read.column(name).to_pylist() == kept
    assert read.column("t").null_count == 3
    assert query_of(read) == query_of(table)


def test_text_with_quotes_commas_and_lines_survives_csv_and_json(tmp_path: Path) -> None:
    hard = 'a "quoted", line\nbreak é \U0001f600'
    table = pa.table({"rank": [1], "before": [hard], "score": [np.inf]})
    with (tmp_path / "rows.csv").open("w+", newline="", encoding="utf-8") as file:
        file.write(write_table(table, format="csv") or "")
        file.seek(0)
        assert next(csv.DictReader(file))["before"] == hard
    assert json.loads(write_table(table) or "")["rows"] == [{"rank": 1, "before": hard, "score": None}]


def test_an_empty_answer_is_an_empty_list_of_rows(store: ScoreStore) -> None:
    table = rank_tokens(store, latent=7, site="model.layers.3", objective="next-token")
    assert json.loads(write_table(table) or "")["rows"] == []
    assert (write_table(table, format="csv") or "").count("\n") == 1


def test_a_file_that_exists_is_replaced(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("x" * 100_000)
    write_table(table, path)
    assert path.read_text() == write_table(table)


def test_what_cannot_be_written_is_refused(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"unknown format 'jsn'; did you mean 'json'\?"):
        write_table(table, format="jsn")
    with pytest.raises(QueryError, match="parquet is no text; expected a path"):
        write_table(table, format="parquet")
    with pytest.raises(StoreError, match="cannot lie in object storage; expected a path on a disk"):
        write_table(table, "s3://bucket/rows.json")
    with pytest.raises(QueryError, match=r"folder .*absent does not exist; make it first"):
        write_table(table, tmp_path / "absent" / "rows.json")
