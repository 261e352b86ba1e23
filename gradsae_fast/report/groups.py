"""Groups of documents that an audit compares: the values of a metadata column, or two conditions against each other.

A value of a column is compared with the rest of the corpus, documents without a value included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.counts import counted
from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.selection import select
from gradsae_fast.records import Array
from gradsae_fast.spelling import did_you_mean
from gradsae_fast.store import ScoreStore

MOST_VALUES = 12
FEWEST_DOCUMENTS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Documents that meet a condition."""

    name: str
    condition: str
    members: dict[int, Array]  # segment's index -> bool [M]
    num_documents: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Two groups; the second one may be the rest of the corpus, which is none of the grouping's."""

    name: str
    a: Group
    b: Group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """What an audit compares, and which values of columns have too few documents to be compared."""

    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]
    too_small: tuple[str, ...]


def find_groups(store: ScoreStore, asked: Sequence[str | tuple[str, str]]) -> Grouping:
    """Find the documents of every group.

    Args:
        store: an open store.
        asked: names of metadata columns, and pairs of conditions.

    Raises:
        QueryError: a column or condition is unknown or matches nothing, or a column has one value or too many.
    """
    groups: list[Group] = []
    comparisons: list[Comparison] = []
    too_small: list[str] = []
    for question in asked:
        if isinstance(question, tuple):
            a, b = (_group(store, condition, condition) for condition in question)
            groups += [a, b]
            comparisons.append(Comparison(name=f"{a.name} against {b.name}", a=a, b=b))
            continue
        of_column = [
            _group(store, f"{question} = {value}", f"{_quoted(question)}={_quoted(value)}")
            for value in _values(store, question)
        ]
        large = [group for group in of_column if _is_comparable(group, store)]
        too_small += [_with_size(group) for group in of_column if group not in large]
        groups += large
        comparisons += _comparisons(large, store)
    return Grouping(groups=tuple(groups), comparisons=tuple(comparisons), too_small=tuple(too_small))


def _is_comparable(group: Group, store: ScoreStore) -> bool:
    return FEWEST_DOCUMENTS <= group.num_documents <= store.num_documents - FEWEST_DOCUMENTS


def _comparisons(groups: Sequence[Group], store: ScoreStore) -> list[Comparison]:
    """Compare each with the rest; two that are all of the corpus are compared once."""
    if len(groups) == 2 and sum(group.num_documents for group in groups) == store.num_documents:
        a, b = groups
        return [Comparison(name=f"{a.name} against {b.name}", a=a, b=b)]
    return [Comparison(name=f"{group.name} against the rest", a=group, b=_rest(group, store)) for group in groups]


def _rest(group: Group, store: ScoreStore) -> Group:
    return Group(
        name="the rest",
        condition=f"not ({group.condition})",
        members={index: ~member_M for index, member_M in group.members.items()},
        num_documents=store.num_documents - group.num_documents,
    )


def _with_size(group: Group) -> str:
    return f"{group.name} ({counted(group.num_documents, 'document')})"


def _group(store: ScoreStore, name: str, condition: str) -> Group:
    members = {segment.index: np.zeros(segment.num_documents, bool) for segment in store.segments}
    for segment, slots in select(store, where=condition):
        members[segment.index][slots] = True
    num_documents = sum(int(member_M.sum()) for member_M in members.values())
    return Group(name=name, condition=condition, members=members, num_documents=num_documents)


def _values(store: ScoreStore, column: str) -> list[str]:
    """The values of a metadata column as conditions write them, in order."""
    tables = [segment.metadata() for segment in store.segments]
    known = sorted({name for table in tables for name in table})
    if column not in known:
        hint = did_you_mean(column, known) if known else "the documents of this store have no metadata"
        raise QueryError(f"no document has a metadata column {column!r}; {hint}")
    found = {_text(value) for table in tables for value in table.get(column, []) if value is not None}
    if not 2 <= len(found) <= MOST_VALUES:
        raise QueryError(
            f"the metadata column {column!r} has {len(found)} values; expected 2 to {MOST_VALUES}: compare two "
            "conditions instead (contrast)"
        )
    return sorted(found)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    for quote in ('"', "'"):
        if quote not in text:
            return f"{quote}{text}{quote}"
    raise QueryError(f"{text!r:.200} has both kinds of quotes, which no condition can hold; compare other groups")
