import numpy as np
import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.where import documents_that_match, holds_numbers, parse_where


def clauses(text: str) -> list[tuple[str, str, str]]:
    return [(clause.column, clause.operator, clause.value) for clause in parse_where(text)]


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
    ],
)
def test_a_condition_is_read_as_typed(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert clauses(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "party",
        "=x",
        "party=",
        "year=>1950",
        "a=b,",
        "a=b and",
        "a=b c=d",
        "a=b,,c=d",
        "x='open",
        "x=Trinidad and Tobago",
    ],
)
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(QueryError, match=r"expected column, operator, value, like 'party=Republican, year>=1950'"):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year>=900", [True, True, False, False]),
        ("year=1950.0", [True, False, False, False]),
        ("year!=1950", [False, True, True, True]),
        ("year<1e3", [False, True, False, True]),
    ],
)
def test_numbers_compare_as_numbers_and_a_missing_value_meets_only_unequal(text: str, expected: list[bool]) -> None:
    values = [1950, 950.5, None, -1]
    (clause,) = parse_where(text)
    assert documents_that_match(clause, values, numbers=holds_numbers(values)).tolist() == expected


def test_text_compares_letter_by_letter() -> None:
    values = ["1950", "950", "Whig", None]
    assert not holds_numbers(values)
    (later,) = parse_where("x>1950")
    assert documents_that_match(later, values, numbers=False).tolist() == [False, True, True, False]
    (exact,) = parse_where("x=whig")
    assert not documents_that_match(exact, values, numbers=False).any()


def test_booleans_are_written_true_and_false_in_any_case() -> None:
    values = [True, False, None]
    assert not holds_numbers(values)
    for text in ("flag=True", "flag=true"):
        (clause,) = parse_where(text)
        assert documents_that_match(clause, values, numbers=False).tolist() == [True, False, False]


def test_equal_and_unequal_split_the_documents_in_two() -> None:
    values = ["a", None, "b", "a"]
    (equal,), (unequal,) = parse_where("x=a"), parse_where("x!=a")
    np.testing.assert_array_equal(
        documents_that_match(equal, values, numbers=False), ~documents_that_match(unequal, values, numbers=False)
    )


def test_a_word_against_a_column_of_numbers_is_refused() -> None:
    (clause,) = parse_where("year=late")
    with pytest.raises(QueryError, match=r"'year' holds numbers; got 'late'; compare it with a number"):
        documents_that_match(clause, [1950], numbers=True)
