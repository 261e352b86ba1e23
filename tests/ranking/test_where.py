import json
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.conditions import Clause, clauses_of, documents_that_meet, holds_numbers
from gradsae_fast.ranking.where import MAX_DEPTH, parse_where


def clauses(text: str) -> list[tuple[str, str, str]]:
    return [(clause.column, clause.operator, ", ".join(clause.values)) for clause in clauses_of(parse_where(text))]


def met(text: str, **columns: list[Any]) -> list[bool]:
    return documents_that_meet(parse_where(text), columns).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("party=Republican", [("party", "=", "Republican")]),
        ("party == Republican", [("party", "=", "Republican")]),
        ("year>=1950,party!=none", [("year", ">=", "1950"), ("party", "!=", "none")]),
        ("year >= 1950 and year<1980 AND a=b", [("year", ">=", "1950"), ("year", "<", "1980"), ("a", "=", "b")]),
        ("president=Abraham Lincoln, year>1860", [("president", "=", "Abraham Lincoln"), ("year", ">", "1860")]),
        ("president=Andrew", [("president", "=", "Andrew")]),
        ("x='a, b and c=d'", [("x", "=", "a, b and c=d")]),
        ('"two words"="it\'s"', [("two words", "=", "it's")]),
        ("name=O'Brien", [("name", "=", "O'Brien")]),
        ("x=''", [("x", "=", "")]),
        ("weight<-1.5e3", [("weight", "<", "-1.5e3")]),
        ("  x = y  ", [("x", "=", "y")]),
        ("x= and", [("x", "=", "and")]),
        ("x=Paris (France), f(x)=3", [("x", "=", "Paris (France)"), ("f(x)", "=", "3")]),
        ("x=(a), (y)=:)", [("x", "=", "(a)"), ("(y)", "=", ":)")]),
        ("x=a ~ b, a~b=c", [("x", "=", "a ~ b"), ("a~b", "=", "c")]),
        ("not=x, in=y, exists=z, or=w", [("not", "=", "x"), ("in", "=", "y"), ("exists", "=", "z"), ("or", "=", "w")]),
        ("motto=Live Free or Die", [("motto", "=", "Live Free or Die")]),
        ("x=to be or not to be, y=1", [("x", "=", "to be or not to be"), ("y", "=", "1")]),
        ("x=a or", [("x", "=", "a or")]),
    ],
)  # fmt: skip
def test_a_plain_condition_is_read_as_typed(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert clauses(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1 or b=2 and not c=3", "(a = '1' or (b = '2' and not (c = '3')))"),
        ("a=1, b=2 or c=3", "((a = '1' and b = '2') or c = '3')"),
        ("(a=1 or b=2), c=3", "((a = '1' or b = '2') and c = '3')"),
        ("NOT(a=1 OR b=2)AND(c=3)", "(not (a = '1' or b = '2') and c = '3')"),
        ("not not a=1", "not (not (a = '1'))"),
        ("a in (Whig, 'x, y', O'Brien, b ) and b=2", "(a in ('Whig', 'x, y', \"O'Brien\", 'b') and b = '2')"),
        ("a not in (1) or a not exists", "(not (a in ('1')) or not (a exists))"),
        ("title ~ War or Peace or title~'or'", "(title ~ 'War or Peace' or title ~ 'or')"),
        ("(city=Paris (France) or x exists)", "(city = 'Paris (France)' or x exists)"),
        ("x='a'or y='b'", "(x = 'a' or y = 'b')"),
        ("x=a or (y=b, not(z=c))", "(x = 'a' or (y = 'b' and not (z = 'c')))"),
        ("x=a or not y exists", "(x = 'a' or not (y exists))"),
    ],
)  # fmt: skip
def test_not_binds_before_and_before_or(text: str, expected: str) -> None:
    assert str(parse_where(text)) == expected


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "its end"),
        ("party", "'party'"),
        ("=x", "'=x'"),
        ("party=", "its end"),
        ("year=>1950", "'>1950'"),
        ("a=b,", "its end"),
        ("a=b and", "its end"),
        ("a=b c=d", "'b c=d' on (a value that holds '=' needs quotes)"),
        ("a=b,,c=d", "',c=d'"),
        ("x='open", '"\'open" on (a quote is open)'),
        ("x=Trinidad and Tobago", "'Tobago'"),
        ("(a=b", "its end on (a ')' is missing)"),
        ("a='b')", "its end on (')' without '(')"),
        ("not", "'not'"),
        ("()", "')'"),
        ("(a=)", "')'"),
        ("a='b' c", "' c'"),
        ("a='b' or", "its end"),
        ("a in ()", "')'"),
        ("a in (b", "'b'"),
        ("a in (b,)", "')'"),
        ("a in b", "'a in b'"),
        ("a exists b", "'a exists b'"),
        ("a ~ ", "its end"),
        ("(" * 100_000, "more than 100"),
        ("not " * 100_000 + "a=b", "more than 100"),
        ("(" * 100_000 + "a=b" + ")" * 100_000, "more than 100"),
        (" " * 100_000, "its end"),
        ("x=" + " " * 100_000 + "=", "'='"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_its_place_and_an_example(text: str, place: str) -> None:
    with pytest.raises(QueryError, match=r"expected column, operator, value, like 'party=Republican, year>=1950'") as e:
        parse_where(text)
    assert place in str(e.value)
    assert len(str(e.value)) < 500


def test_long_and_deep_conditions_are_read() -> None:
    assert len(list(clauses_of(parse_where(" or ".join(f"x={i}" for i in range(20_000)))))) == 20_000
    assert met("(" * MAX_DEPTH + "x=1" + ")" * MAX_DEPTH, x=[1, 2]) == [True, False]
    assert met("not " * MAX_DEPTH + "x=1", x=[1, 2]) == [True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year>=900", [True, True, False, False]),
        ("year=1950.0", [True, False, False, False]),
        ("year!=1950", [False, True, True, True]),
        ("year<1e3", [False, True, False, True]),
        ("year in (1950, -1.0)", [True, False, False, True]),
        ("year not in (1950, -1.0)", [False, True, True, False]),
        ("year ~ 950", [True, True, False, False]),
        ("year exists", [True, True, False, True]),
        ("year not exists", [False, False, True, False]),
        ("not year>=900", [False, False, True, True]),
    ],
)
def test_numbers_compare_as_numbers_and_a_missing_value_meets_only_what_denies(text: str, expected: list[bool]) -> None:
    assert met(text, year=[1950, 950.5, None, -1]) == expected


def test_text_compares_letter_by_letter() -> None:
    values = ["1950", "950", "Whig", None]
    assert not holds_numbers(values)
    assert met("x>1950", x=values) == [False, True, True, False]
    assert not any(met("x=whig or x ~ whig or x in (whig)", x=values))
    assert met("x ~ hi", x=values) == [False, False, True, False]


def test_iso_dates_are_in_order() -> None:
    assert met("day>=1950-02-01, day<1950-12", day=["1950-01-31", "1950-02-01", "1950-11-30", "1951-01-01"]) == [
        False, True, True, False,
    ]  # fmt: skip


def test_booleans_are_written_true_and_false_in_any_case() -> None:
    values = [True, False, None]
    assert not holds_numbers(values)
    for text in ("flag=True", "flag=true", "flag in (TRUE, x)", "flag ~ true"):
        assert met(text, flag=values) == [True, False, False]


def test_whole_numbers_are_compared_to_their_last_digit() -> None:
    values = [1234567890123456789, 1234567890123456788, None]
    assert met("id = 1234567890123456789", id=values) == [True, False, False]
    assert met("id in (1234567890123456788, 2.5)", id=values) == [False, True, False]
    assert met("id > 1234567890123456788", id=values) == [True, False, False]


def test_what_is_no_text_is_compared_as_json() -> None:
    values = [["a", True], {"b": None}, "ß", 2.5, None]
    assert met("""x = '["a", true]'""", x=values) == [True, False, False, False, False]
    assert met("x ~ null or x ~ ß or x = 2.5", x=values) == [False, True, True, True, False]


@pytest.mark.parametrize("text", ["year=late", "year in (1950, late)", "year != nan"])
def test_a_word_against_a_column_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match=r"'year' holds numbers; got '(late|nan)'; compare it with a number"):
        met(text, year=[1950])


TABLE: dict[str, list[Any]] = {
    "year": [1950, 1801, None, -3, 1950, 0, None, 2024],
    "weight": [0.5, None, 2.0, 1e3, -0.25, None, 2.0, 7.5],
    "party": ["Whig", "War or Peace", None, "O'Brien", "a, b", "(x)", "and", "ß → 文"],
    "day": ["1950-01-31", "1950-02-01", None, "1801-12-08", "", "2024", None, "1950-01-31"],
}
ROWS = len(TABLE["year"])
NUMBERS = ["1950", "0", "-3", "2", "2.0", "0.5", "1e3"]
WORDS = ["Whig", "War or Peace", "O'Brien", "a, b", "(x)", "and", "文", "1950-01", "", "r", "not x exists"]


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (row INT, year INT, weight DOUBLE, party VARCHAR, day VARCHAR)")
        rows = list(zip(range(ROWS), *TABLE.values(), strict=True))
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
        yield connection


def quoted(word: str) -> str:
    return f'"{word}"' if "'" in word else f"'{word}'"


def literal(column: str, word: str) -> str:
    return word if column in ("year", "weight") else "'" + word.replace("'", "''") + "'"


@st.composite
def comparison(draw: st.DrawFn) -> tuple[str, str, int]:
    """A clause as typed and as SQL, with its binding strength."""
    column = draw(st.sampled_from(list(TABLE)))
    words = st.sampled_from(NUMBERS if column in ("year", "weight") else WORDS)
    name = draw(st.sampled_from([column, f'"{column}"', f"'{column}'"]))
    kind = draw(st.sampled_from(["compare", "compare", "in", "exists", "contains"]))
    if kind == "exists":
        no = draw(st.sampled_from(["", " not"]))
        return f"{name}{no} exists", f"{column} IS {'' if no else 'NOT '}NULL", 3
    if kind == "in":
        no, listed = draw(st.sampled_from(["", " NOT"])), draw(st.lists(words, min_size=1, max_size=3))
        sql = f"coalesce({column} IN ({', '.join(literal(column, word) for word in listed)}), false)"
        return f"{name}{no} in ({' , '.join(map(quoted, listed))})", f"NOT {sql}" if no else sql, 3
    word = draw(words)
    if kind == "contains" and column not in ("year", "weight"):
        return f"{name} ~ {quoted(word)}", f"coalesce(contains({column}, {literal(column, word)}), false)", 3
    sign = draw(st.sampled_from(["=", "==", "!=", "<", "<=", ">", ">="]))
    bare = column in ("year", "weight") and draw(st.booleans())
    sql = f"coalesce({column} {sign} {literal(column, word)}, {'true' if sign == '!=' else 'false'})"
    return f"{name}{draw(st.sampled_from(['', ' ']))}{sign}{word if bare else quoted(word)}", sql, 3


def joined(parts: list[tuple[str, str, int]], strength: int, word: str) -> tuple[str, str, int]:
    typed = [text if inner > strength else f"({text})" for text, _, inner in parts]
    sql = {1: " OR ", 2: " AND "}[strength].join(f"({part})" for _, part, _ in parts)
    return word.join(typed), sql, strength


def denied(part: tuple[str, str, int]) -> tuple[str, str, int]:
    text, sql, strength = part
    return (f"not {text}" if strength == 3 else f"not({text})"), f"NOT ({sql})", 3


def larger(parts: st.SearchStrategy[tuple[str, str, int]]) -> st.SearchStrategy[tuple[str, str, int]]:
    lists = st.lists(parts, min_size=2, max_size=3)
    words = {1: [" or ", " OR "], 2: [" and ", ", ", " AND\n", " ,"]}
    choices = [st.builds(joined, lists, st.just(strength), st.sampled_from(joins)) for strength, joins in words.items()]
    return st.one_of(*choices, st.builds(denied, parts))


CONDITIONS = st.recursive(comparison(), larger, max_leaves=8)


@given(condition=CONDITIONS)
def test_any_condition_chooses_what_sql_chooses(
    database: duckdb.DuckDBPyConnection, condition: tuple[str, str, int]
) -> None:
    text, sql, _ = condition
    expected = database.execute(f"SELECT {sql} FROM t ORDER BY row").fetchall()
    assert met(text, **TABLE) == [value for (value,) in expected]


@given(condition=CONDITIONS)
def test_a_condition_and_its_denial_split_the_documents_in_two(condition: tuple[str, str, int]) -> None:
    assert met(f"not ({condition[0]})", **TABLE) == [not value for value in met(condition[0], **TABLE)]


@given(text=st.text(alphabet=st.sampled_from("ab =!<>~,()'\"1 \n")) | st.text() | st.lists(
    st.sampled_from(["not ", "(", ")", "x", "=", "1", " in ", " exists", " or ", " and ", ",", "~", "'"])
).map("".join))  # fmt: skip
def test_any_text_is_a_condition_or_a_query_error(text: str) -> None:
    try:
        condition = parse_where(text)
    except QueryError:
        return
    assert all(isinstance(clause, Clause) and clause.column for clause in clauses_of(condition))


def test_metadata_of_any_json_kind_can_be_asked_about() -> None:
    values: list[Any] = json.loads('["a", null, 3, 2.5, true, [1, "two"], {"a": null}]')
    assert np.array(met("x exists", x=values)).sum() == 6
    assert met("x = 3 or x=true or x ~ two", x=values) == [False, False, True, False, True, True, False]
