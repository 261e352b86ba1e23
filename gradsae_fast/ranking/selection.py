"""Which documents a question is about, segment by segment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.question import did_you_mean
from gradsae_fast.ranking.where import Clause, documents_that_match, holds_numbers, parse_where
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Chosen documents: for each segment that has any, their ascending positions in it (slots, int64)."""

    parts: tuple[tuple[StoredSegment, Array], ...]

    def __iter__(self) -> Iterator[tuple[StoredSegment, Array]]:
        return iter(self.parts)


def select(store: ScoreStore, *, document: str | Sequence[str] | None = None, where: str | None = None) -> Selection:
    """Choose the documents with these keys, those that meet the condition, both, or (neither given) all.

    Reads document keys and metadata, never texts.

    Raises:
        QueryError: a key or metadata column is unknown, or no document is left.

    """
    chosen = [np.ones(segment.num_documents, bool) for segment in store.segments]
    keys = keys_of(document)
    if keys is not None:
        _keep_keys(store, keys, chosen)
    if where is not None:
        _keep_matching(store, where, chosen)
    parts = zip(store.segments, map(np.flatnonzero, chosen), strict=True)
    return Selection(parts=tuple((segment, slots) for segment, slots in parts if len(slots)))


def keys_of(document: str | Sequence[str] | None) -> list[str] | None:
    """Return the asked document keys as a list; None for all documents."""
    return [document] if isinstance(document, str) else None if document is None else list(document)


def _keep_keys(store: ScoreStore, keys: list[str], chosen: list[Array]) -> None:
    if not keys:
        raise QueryError("got an empty list of documents; expected at least one key, or None for all documents")
    wanted, missing, known = set(keys), set(keys), list[str]()
    for segment, part in zip(store.segments, chosen, strict=True):
        segment_keys = segment.document_keys()
        part &= np.fromiter((key in wanted for key in segment_keys), bool, len(segment_keys))
        missing.difference_update(segment_keys)
        known += segment_keys
    if missing:
        name = sorted(missing)[0]
        raise QueryError(f"no committed document has the key {name!r}; {did_you_mean(name, known)}")


def _keep_matching(store: ScoreStore, where: str, chosen: list[Array]) -> None:
    clauses = parse_where(where)
    tables = [segment.metadata() for segment in store.segments]
    known = sorted({name for table in tables for name in table})
    hints = []
    for clause in clauses:
        if clause.column not in known:
            expected = did_you_mean(clause.column, known) if known else "the documents of this store have no metadata"
            raise QueryError(f"no document has a metadata column {clause.column!r}; {expected}")
        columns = [table.get(clause.column, [None] * len(part)) for table, part in zip(tables, chosen, strict=True)]
        hints.append(_keep_clause(clause, columns, chosen))
    if not any(part.any() for part in chosen):
        raise QueryError(f"no chosen document meets {where!r}{''.join(hints) or '; loosen it'}")


def _keep_clause(clause: Clause, columns: list[list[Any]], chosen: list[Array]) -> str:
    """Keep the documents that meet one clause; return a hint where it asks for a value that no document has."""
    values = [value for column in columns for value in column if value is not None]
    numbers = holds_numbers(values)
    matched = [documents_that_match(clause, column, numbers=numbers) for column in columns]
    for part, matches in zip(chosen, matched, strict=True):
        part &= matches
    if clause.operator != "=" or any(matches.any() for matches in matched):
        return ""
    spelled = did_you_mean(clause.value, sorted(set(map(str, values))))
    return f"; {clause.column} is never {clause.value!r}: {spelled}"
