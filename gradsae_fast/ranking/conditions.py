"""What a condition says about documents: comparisons of their metadata, put together with not, and, or.

A condition is met by a document or it is not; there is no third outcome. A document without a value meets no
comparison but `!=`, so that every condition and its `not` split a corpus in two: `x != 1` is `not x = 1`, while
`not x < 1` also takes the documents without an x, which `x >= 1` leaves out.

A column that holds numbers in the whole store is compared as numbers, every other one as text, letter for letter:
dates as they are written, of which those of the form 1950-01-31 are in order, and what is no text as JSON, like `true`
or `["a", 1]`. `~` looks into the text, also of a number.

M documents of a store.
"""

import contextlib
import functools
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.records import Array

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
CONTAINS, ONE_OF, EXISTS = "~", "in", "exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One statement about one metadata column.

    `operator` is a comparison with the one value, `~` (the column's text contains it), `in` (is one of the values) or
    `exists` (has a value; no `values`).
    """

    column: str
    operator: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.operator == EXISTS:
            return f"{self.column} exists"
        listed = ", ".join(map(repr, self.values))
        return f"{self.column} {self.operator} " + (f"({listed})" if self.operator == ONE_OF else listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """Met where the part is not."""

    part: "Condition"

    def __str__(self) -> str:
        return f"not {self.part}" if isinstance(self.part, Every | Either) else f"not ({self.part})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """Met where all parts are."""

    parts: tuple["Condition", ...]

    def __str__(self) -> str:
        return "(" + " and ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True, slots=True, kw_only=True)
class Either:
    """Met where one of the parts is."""

    parts: tuple["Condition", ...]

    def __str__(self) -> str:
        return "(" + " or ".join(map(str, self.parts)) + ")"


Condition: TypeAlias = Clause | Not | Every | Either


def clauses_of(condition: Condition) -> Iterator[Clause]:
    """Yield the clauses of a condition from left to right."""
    if isinstance(condition, Clause):
        yield condition
        return
    for part in (condition.part,) if isinstance(condition, Not) else condition.parts:
        yield from clauses_of(part)


def documents_that_meet(condition: Condition, columns: Mapping[str, Sequence[Any]]) -> Array:
    """Return which of M documents meet a condition, bool [M].

    Args:
        condition: what `where.parse_where` returns.
        columns: the M values of every column that the condition names, None where a document has no value.

    Raises:
        QueryError: a column holds numbers and is compared with a word.
    """
    if isinstance(condition, Clause):
        return _met_by(condition, columns[condition.column])
    if isinstance(condition, Not):
        return ~documents_that_meet(condition.part, columns)
    join = np.logical_and if isinstance(condition, Every) else np.logical_or
    return functools.reduce(join, (documents_that_meet(part, columns) for part in condition.parts))


def holds_numbers(values: Sequence[Any]) -> bool:
    """Whether a column's values, apart from missing ones, are all numbers (booleans are none)."""
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)


def text_of(value: Any) -> str:
    """Return a value, which is not missing, as text: what is no text as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def values_never_met(clause: Clause, values: Sequence[Any]) -> tuple[str, ...]:
    """Return the values of a `=` or `in` that no document has."""
    if clause.operator not in ("=", ONE_OF):
        return ()
    seen, wanted = _compared(clause, values)
    present = {seen(value) for value in values if value is not None}
    return tuple(word for word, expected in zip(clause.values, wanted, strict=True) if expected not in present)


def _met_by(clause: Clause, values: Sequence[Any]) -> Array:
    meets = _test(clause, values)
    missing = clause.operator == "!="
    return np.fromiter((missing if value is None else meets(value) for value in values), bool, len(values))


def _test(clause: Clause, values: Sequence[Any]) -> Callable[[Any], bool]:
    """Return what decides whether a value meets the clause; never asked about a missing one."""
    if clause.operator == EXISTS:
        return lambda value: True
    if clause.operator == CONTAINS:
        (part,) = clause.values
        return lambda value: part in text_of(value)
    seen, wanted = _compared(clause, values)
    if clause.operator == ONE_OF:
        allowed = frozenset(wanted)
        return lambda value: seen(value) in allowed
    compare, (expected,) = COMPARISONS[clause.operator], wanted
    return lambda value: compare(seen(value), expected)


def _compared(clause: Clause, values: Sequence[Any]) -> tuple[Callable[[Any], Any], list[Any]]:
    """Return how a column's value is seen, as a number or as text, and the clause's values seen so."""
    if holds_numbers(values):
        return (lambda value: value), [_number(clause, word) for word in clause.values]
    booleans = any(isinstance(value, bool) for value in values)
    return text_of, [word.lower() if booleans and word.lower() in ("true", "false") else word for word in clause.values]


def _number(clause: Clause, word: str) -> float:
    """Read a number; a whole one exactly, as ids may have more digits than a float."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number: float = kind(word)
            if number == number:  # no NaN, which no comparison is about
                return number
    raise QueryError(
        f"the metadata column {clause.column!r} holds numbers; got {word!r}; "
        f"compare it with a number, like {clause.column}>=1950"
    )
