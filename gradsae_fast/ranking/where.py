r"""Conditions over document metadata, as typed on a command line.

    condition = clause, then any number of  (","  or  " and ")  clause
    clause    = column operator value              operator: = == != < <= > >=

A column that holds numbers is compared as numbers, every other column as text (letter for letter; `true` and `false`
for booleans). Quotes are needed where a column or value holds a comma, an operator or the word "and".
A document without a value meets `!=` only, so that `x=1` and `x!=1` split the corpus in two.

>>> [str(clause) for clause in parse_where("party=Republican, year>=1950")]
["party = 'Republican'", "year >= '1950'"]
>>> parse_where("country='Trinidad and Tobago' and size!=small")[0].value
'Trinidad and Tobago'
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.records import Array

EXAMPLE = "party=Republican, year>=1950"

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_CLAUSE = re.compile(
    r"""\s*(?P<column> "[^"]+" | '[^']+' | [^\s=!<>,'"]+ )
        \s*(?P<operator> == | != | >= | <= | = | > | < )
        \s*(?P<value> "[^"]*" | '[^']*' | [^\s=!<>,'"][^=!<>,]*? )
        (?P<end> \s*,\s* | \s+and(?:\s+|\Z) | \s*\Z )""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One comparison of a metadata column with a value."""

    column: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.value!r}"


def parse_where(text: str) -> tuple[Clause, ...]:
    """Read a condition into its clauses, which must all hold.

    Raises:
        QueryError: the text is no condition.

    """
    clauses: list[Clause] = []
    position, more = 0, True
    while more:
        found = _CLAUSE.match(text, position)
        if found is None:
            raise QueryError(
                f"cannot read the condition {text!r} from {text[position:]!r} on; expected column, operator, value, "
                f"like {EXAMPLE!r}; put quotes around a value that holds a comma, an operator or the word 'and'"
            )
        sign = "=" if found["operator"] == "==" else found["operator"]
        clauses.append(Clause(column=_unquoted(found["column"]), operator=sign, value=_unquoted(found["value"])))
        position, more = found.end(), bool(found["end"].strip())
    return tuple(clauses)


def holds_numbers(values: Sequence[Any]) -> bool:
    """Whether a column's values, apart from missing ones, are all numbers (booleans are none)."""
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)


def documents_that_match(clause: Clause, values: Sequence[Any], *, numbers: bool) -> Array:
    """Compare each of a column's M values with the clause's value: bool [M].

    Args:
        clause: the comparison.
        values: the column, None where a document has no value.
        numbers: whether the column holds numbers in the whole store (one segment may hold none by chance).

    Raises:
        QueryError: the column holds numbers and the clause's value is none.

    """
    compare = OPERATORS[clause.operator]
    expected: Any = _number(clause) if numbers else clause.value
    if not numbers and clause.value.lower() in ("true", "false") and any(isinstance(value, bool) for value in values):
        expected = clause.value.lower()
    matches = (
        clause.operator == "!=" if value is None else compare(value if numbers else _text(value), expected)
        for value in values
    )
    return np.fromiter(matches, bool, len(values))


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in ("'", '"') else text


def _number(clause: Clause) -> float:
    try:
        return float(clause.value)
    except ValueError as error:
        raise QueryError(
            f"the metadata column {clause.column!r} holds numbers; got {clause.value!r}; "
            f"compare it with a number, like {clause.column}{clause.operator}1950"
        ) from error


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
