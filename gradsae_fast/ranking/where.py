r"""Conditions over document metadata, as typed on a command line.

    condition = both, then any number of  "or" both
    both      = term, then any number of  ("and" or ",")  term
    term      = "not" term   or   "(" condition ")"   or   clause
    clause    = column operator value               operator: = == != < <= > >=, and ~ for "contains"
              | column ["not"] "in" "(" value, ... ")"
              | column ["not"] "exists"

`not` binds most tightly, then `and`, then `or`; words of the grammar may be written in capitals. What clauses mean,
and what they say of documents without a value, stands in `conditions`. A column is a metadata column, or `key` or
`num_tokens` (see `document_columns`).

Quotes are needed where a column or value holds a comma, one of = ! < >, or the word "and"; for a column, also a space
or an odd parenthesis. A bare value may hold the word "or": that begins a new term only where a term follows.

>>> str(parse_where("party=Republican, year>=1950"))
"(party = 'Republican' and year >= '1950')"
>>> str(parse_where("not (party in (Whig, Federalist) or title ~ Union) and year exists"))
"(not (party in ('Whig', 'Federalist') or title ~ 'Union') and year exists)"
>>> str(parse_where("country='Trinidad and Tobago', motto=Live Free or Die"))
"(country = 'Trinidad and Tobago' and motto = 'Live Free or Die')"
"""

import re

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.conditions import CONTAINS, EXISTS, ONE_OF, Clause, Condition, Either, Every, Not

EXAMPLE = "party=Republican, year>=1950"
MAX_DEPTH = 100  # of parentheses and nots inside each other: the parser and what reads its trees call themselves

_SHOWN = 60  # characters of a condition that an error repeats
_COLUMN = r"""(?: "[^"]+" | '[^']+' | (?: [^\s=!<>,'"()] | \( [^\s=!<>,'"()]* \) )+ )"""
_COMPARISON = r"(?: == | != | >= | <= | = | > | < )"
_CLAUSE_END = r"(?= \s* (?: \Z | [,)] ) | \s+ (?: and | or ) \b )"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.VERBOSE | re.IGNORECASE)


_COMPARE = _pattern(rf"(?P<column> {_COLUMN} ) \s* (?P<operator> {_COMPARISON} ) \s*")
_CONTAIN = _pattern(r"""(?P<column> "[^"]+" | '[^']+' | [^\s=!<>,'"()~]+ ) \s* ~ \s*""")
_LIST = _pattern(rf"(?P<column> {_COLUMN} ) (?P<no> \s+ not )? \s+ in \s* \( \s*")
_EXIST = _pattern(rf"(?P<column> {_COLUMN} ) (?P<no> \s+ not )? \s+ exists {_CLAUSE_END}")
_QUOTED = _pattern(r""" "[^"]*" | '[^']*' """)
_ITEM = _pattern(r"""(?P<value> "[^"]*" | '[^']*' | [^\s,()'"] [^,()]* ) \s* (?P<end> [,)] ) \s*""")
_CLAUSES = (_COMPARE, _CONTAIN, _LIST, _EXIST)
_NOT = _pattern(r"not (?= [\s(] ) \s*")
_OPEN, _CLOSE = _pattern(r"\( \s*"), _pattern(r"\s* \)")
_AND, _OR = _pattern(r"\s* , \s* | \s* \b and (?= [\s(] | \Z ) \s*"), _pattern(r"\s* \b or (?= [\s(] | \Z ) \s*")
_BARE = _pattern(r"""[^\s=!<>,'"]""")
_IN_VALUE = _pattern(r"[=!<>,()] | (?<= \s ) (?: and | or ) (?= [\s(] | \Z )")
_BEFORE_CLAUSE = _pattern(r"\s* (?: \( \s* | not (?= [\s(] ) \s* )*")


def parse_where(text: str) -> Condition:
    """Read a condition.

    Raises:
        QueryError: the text is no condition; the message has the place from which it cannot be read.
    """
    reading = _Reading(text)
    condition = reading.condition(0)
    if reading.position < len(text.rstrip()):
        raise reading.refused("')' without '('" if reading.take(_CLOSE) else "")
    return condition


class _Reading:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = len(text) - len(text.lstrip())

    def condition(self, depth: int) -> Condition:
        parts = [self.both(depth)]
        while self.take(_OR):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else Either(parts=tuple(parts))

    def both(self, depth: int) -> Condition:
        parts = [self.term(depth)]
        while self.take(_AND):
            parts.append(self.term(depth))
        return parts[0] if len(parts) == 1 else Every(parts=tuple(parts))

    def term(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise self.refused(f"more than {MAX_DEPTH} parentheses and nots inside each other")
        if any(pattern.match(self.text, self.position) for pattern in _CLAUSES):
            return self.clause(depth)
        if self.take(_NOT):
            return Not(part=self.term(depth + 1))
        if self.take(_OPEN):
            inner = self.condition(depth + 1)
            if not self.take(_CLOSE):
                raise self.refused("a ')' is missing")
            return inner
        raise self.refused()

    def clause(self, depth: int) -> Condition:
        if found := self.take(_COMPARE):
            sign = "=" if found["operator"] == "==" else found["operator"]
            return Clause(column=_unquoted(found["column"]), operator=sign, values=(self.value(depth),))
        if found := self.take(_CONTAIN):
            return Clause(column=_unquoted(found["column"]), operator=CONTAINS, values=(self.value(depth),))
        if found := self.take(_LIST):
            clause = Clause(column=_unquoted(found["column"]), operator=ONE_OF, values=self.items())
        else:
            found = self.take(_EXIST)
            assert found is not None
            clause = Clause(column=_unquoted(found["column"]), operator=EXISTS)
        return Not(part=clause) if found["no"] else clause

    def items(self) -> tuple[str, ...]:
        values, more = list[str](), True
        while more:
            found = self.take(_ITEM)
            if found is None:
                raise self.refused("expected the values of a list, like (Whig, Federalist)")
            values.append(_unquoted(found["value"].strip()))
            more = found["end"] == ","
        return tuple(values)

    def value(self, depth: int) -> str:
        if found := self.take(_QUOTED):
            return _unquoted(found[0].strip())
        start = self.position
        self.position = self.end_of_bare_value(depth) if _BARE.match(self.text, start) else start
        value = self.text[start : self.position].rstrip()
        if not value:
            raise self.refused(
                "a quote is open" if self.text[start : start + 1] in ("'", '"') else "a value is missing"
            )
        return value

    def end_of_bare_value(self, depth: int) -> int:
        """Return where a bare value ends: at what cannot be in it, or at what goes on after it."""
        inside = 0  # parentheses that the value itself has opened
        for found in _IN_VALUE.finditer(self.text, self.position):
            sign, place = found[0], found.start()
            if sign in "=!<>":
                raise self.refused(f"a value that holds {sign!r} needs quotes")
            if sign == "," or (sign == ")" and depth and not inside):
                return place
            if sign in "()":
                inside += 1 if sign == "(" else -1 if inside else 0
            elif place > self.position and self.goes_on(sign, found.end()):
                return place
        return len(self.text)

    def goes_on(self, word: str, place: int) -> bool:
        """Whether "and" or "or" inside a bare value ends it: a spaced "and" always, else if a clause follows."""
        if word.lower() == "and" and not self.text.startswith("(", place):
            return True
        before = _BEFORE_CLAUSE.match(self.text, place)
        assert before is not None
        return any(pattern.match(self.text, before.end()) for pattern in _CLAUSES)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.position)
        if found is not None:
            self.position = found.end()
        return found

    def refused(self, reason: str = "") -> QueryError:
        rest = self.text[self.position :]
        return QueryError(
            f"cannot read the condition {_shown(self.text)} from {_shown(rest) if rest else 'its end'} on"
            f"{reason and f' ({reason})'}; expected column, operator, value, like {EXAMPLE!r}, joined by and, or, not "
            "and parentheses; put quotes around a value that holds a comma, an operator or the word 'and'"
        )


def _unquoted(text: str) -> str:
    return text[1:-1] if text[:1] in ("'", '"') else text


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"
