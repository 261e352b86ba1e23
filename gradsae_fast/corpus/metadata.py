"""Metadata of a document as JSON values, whatever the source handed over.

Nested lists and mappings are kept. NaN becomes null; what JSON has no type for (dates, decimals, bytes, infinities)
becomes its `str`. numpy scalars and arrays become the Python values they stand for.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradsae_fast.errors import CorpusError


def json_value(value: object, place: str) -> Any:
    """`value` as JSON; `place` is used in the CorpusError for text that is no Unicode and for endless nesting."""
    try:
        return _converted(value, place)
    except RecursionError as error:
        raise CorpusError(
            f"{place}: got metadata nested too deeply, expected a few levels; leave the column out"
        ) from error


def check_unicode(text: str, place: str) -> str:
    """`text` itself, or a CorpusError where it holds half a surrogate pair, which no tokenizer or file can take."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{place}: got the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, expected "
            "Unicode text; repair the escape sequence in the source"
        ) from error
    return text


def _json_number(number: float) -> float | str | None:
    if math.isnan(number):
        return None
    return float(number) if math.isfinite(number) else str(number)


def _converted(value: object, place: str) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, str):
        return check_unicode(value, place)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return _json_number(value)
    if isinstance(value, Mapping):
        return {check_unicode(str(key), place): _converted(item, place) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_converted(item, place) for item in value]
    return str(value)
