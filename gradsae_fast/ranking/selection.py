"""Which documents a question is about, segment by segment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.conditions import Clause, clauses_of, documents_that_meet, text_of, values_never_met
from gradsae_fast.ranking.document_columns import read_columns
from gradsae_fast.ranking.where import parse_where
from gradsae_fast.records import Array
from gradsae_fast.spelling import did_you_mean
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.keys import find_key
from gradsae_fast.store.segment import StoredSegment

_FEW_KEYS = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Chosen documents: for each segment that has any, their ascending positions in it (slots, int64)."""

    parts: tuple[tuple[StoredSegment, Array], ...]
    is_all: bool = False  # whether they are all documents of the store

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
    return Selection(
        parts=tuple((segment, slots) for segment, slots in parts if len(slots)),
        is_all=document is None and where is None,
    )


def select_each(store: ScoreStore, conditions: Sequence[str]) -> list[Selection]:
    """Choose the documents that meet each condition; metadata is read once for all.

    Raises:
        QueryError: a metadata column is unknown, or no document meets a condition.
    """
    borders = np.cumsum([segment.num_documents for segment in store.segments])[:-1]
    selections = []
    for met_M in _matching(store, conditions):
        parts = zip(store.segments, map(np.flatnonzero, np.split(met_M, borders)), strict=True)
        selections.append(Selection(parts=tuple((segment, slots) for segment, slots in parts if len(slots))))
    return selections


def keys_of(document: str | Sequence[str] | None) -> list[str] | None:
    """Return the asked document keys as a list; None for all documents."""
    return [document] if isinstance(document, str) else None if document is None else list(document)


def _keep_keys(store: ScoreStore, keys: list[str], chosen: list[Array]) -> None:
    if not keys:
        raise QueryError("got an empty list of documents; expected at least one key, or None for all documents")
    if _keep_found(store, keys, chosen):
        return
    wanted, missing, known = set(keys), set(keys), list[str]()
    for segment, part in zip(store.segments, chosen, strict=True):
        segment_keys = segment.document_keys()
        part &= np.fromiter((key in wanted for key in segment_keys), bool, len(segment_keys))
        missing.difference_update(segment_keys)
        known += segment_keys
    if missing:
        name = sorted(missing)[0]
        raise QueryError(f"no committed document has the key {name!r}; {did_you_mean(name, known)}")


def _keep_found(store: ScoreStore, keys: list[str], chosen: list[Array]) -> bool:
    """Keep what the key index finds; False, and nothing changed, where it is not there or a key is not in it.

    Every key found is read and compared, which for many keys is more work than reading all of them.
    """
    if store.index is None or len(keys) > max(_FEW_KEYS, store.num_documents // 1000):
        return False
    at = {segment.index: number for number, segment in enumerate(store.segments)}
    kept = [np.zeros(len(part), bool) for part in chosen]
    for key in keys:
        places = [(at[index], slot) for index, slot in find_key(store.index, key)]
        for number, _ in places:
            store.segments[number].expect(("documents/key/offsets", "documents/key/bytes"))
        places = [(number, slot) for number, slot in places if store.segments[number].key_of(slot) == key]
        if not places:
            return False
        for number, slot in places:
            kept[number][slot] = True
    for part, keep in zip(chosen, kept, strict=True):
        part &= keep
    return True


def _keep_matching(store: ScoreStore, where: str, chosen: list[Array]) -> None:
    chosen_M = np.concatenate([np.zeros(0, bool), *chosen])
    (met_M,) = _matching(store, [where], chosen_M)
    borders = np.cumsum([len(part) for part in chosen])[:-1]
    for part, met in zip(chosen, np.split(met_M, borders), strict=True):
        part &= met


def _matching(store: ScoreStore, conditions: Sequence[str], chosen_M: Array | bool = True) -> Iterator[Array]:
    """Yield which of the M documents meet each condition, bool [M]; at least one of the chosen ones does."""
    parsed = [parse_where(where) for where in conditions]
    columns = read_columns(store, [clause.column for condition in parsed for clause in clauses_of(condition)])
    for where, condition in zip(conditions, parsed, strict=True):
        met_M = documents_that_meet(condition, columns)
        if not np.any(met_M & chosen_M):
            hints = "".join(_hint(clause, columns[clause.column]) for clause in clauses_of(condition))
            raise QueryError(f"no chosen document meets {where!r}{hints or '; loosen it'}")
        yield met_M


def _hint(clause: Clause, values: Sequence[Any]) -> str:
    """Say where a clause asks for a value that no document has."""
    known = sorted({text_of(value) for value in values if value is not None})
    return "".join(
        f"; {clause.column} is never {value!r}: {did_you_mean(value, known)}"
        for value in values_never_met(clause, values)
    )
