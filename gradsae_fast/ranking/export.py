"""A ranking table as a file that opens without this package.

    json      {"query": {...}, "rows": [{column: value, ...}, ...]}; the query is the table's schema metadata
              (see `answer`), the rows come in rank order
    csv       a header and the rows; the metadata is left out
    parquet   the Arrow table with its schema metadata

Numbers keep every digit (the shortest text that reads back as the same float); NaN and infinities become null (an
empty field in csv).
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import query_of
from gradsae_fast.ranking.question import one_of
from gradsae_fast.store.places.place import disk_path_of

FORMATS = ("json", "csv", "parquet")


def write_table(table: pa.Table, path: str | Path | None = None, format: str = "json") -> str | None:
    """Write a ranking table to a file (replaced if it exists), or return its text where no path is given.

    Raises:
        QueryError: the format is unknown, parquet is asked for without a path, or the path's folder does not exist.
        StoreError: the path is an address of object storage.
    """
    one_of("format", format, FORMATS)
    if path is None and format == "parquet":
        raise QueryError("parquet is no text; expected a path to write it to; give one, or ask for json or csv")
    content = _encode(without_nan(table), format)
    if path is None:
        return content.decode()
    file = disk_path_of(path)
    if not file.parent.is_dir():
        raise QueryError(f"cannot write {path}: the folder {file.parent} does not exist; make it first")
    file.write_bytes(content)
    return None


def without_nan(table: pa.Table) -> pa.Table:
    """Replace NaN and infinities by null."""
    for position, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table.column(position)
            finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, field.type))
            table = table.set_column(position, field, finite)
    return table


def _encode(table: pa.Table, format: str) -> bytes:
    if format == "json":
        return (json.dumps(_document(table), ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()
    stream = BytesIO()
    if format == "csv":
        pyarrow.csv.write_csv(table, stream)
    else:
        pyarrow.parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _document(table: pa.Table) -> dict[str, Any]:
    columns = {name: _values(table.column(name)) for name in table.column_names}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {"query": query_of(table), "rows": rows}


def _values(column: pa.ChunkedArray) -> list[Any]:
    if column.type != pa.float32():
        return column.to_pylist()
    # The shortest decimal of a float32 is far shorter than that of the float64 nearest to it.
    return [None if value is None else float(str(np.float32(value))) for value in column.to_pylist()]
