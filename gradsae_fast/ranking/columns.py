"""Texts and JSON values as Arrow columns."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

_INT64 = 1 << 63


def text_column(texts: Sequence[str | None]) -> pa.Array:
    """Make a string column; None is null, and lone surrogates, which Arrow cannot hold, become "?"."""
    return pa.array([None if text is None else text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def json_column(values: Sequence[Any]) -> pa.Array:
    """Make a column of JSON values: booleans, integers, floats or strings where all present ones are; else JSON text.

    >>> json_column([1, None, 2.5]).type, json_column([True, "x"]).to_pylist()
    (DataType(double), ['true', '"x"'])
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        return text_column(values)
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or -_INT64 <= value < _INT64 for value in values):
        return pa.array(values, pa.int64())
    if kinds == {float} or kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return text_column([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])
