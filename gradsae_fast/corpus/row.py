"""A record of a source before its columns are given a meaning."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record. `index` counts from 0 inside the source; `place` is how an error message points at it."""

    index: int
    place: str
    value: object  # a mapping of columns; from a Python iterable also a str or a Document
