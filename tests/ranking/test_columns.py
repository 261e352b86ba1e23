from typing import Any

import pytest

from gradsae_fast.ranking.columns import json_column, text_column


@pytest.mark.parametrize(
    ("values", "type_name", "expected"),
    [
        (["a", None], "string", ["a", None]),
        ([1, None, -2], "int64", [1, None, -2]),
        ([1, 2.5, None], "double", [1.0, 2.5, None]),
        ([True, None, False], "bool", [True, None, False]),
        ([1, True], "string", ["1", "true"]),
        ([1, "a"], "string", ["1", '"a"']),
        ([[1, "ü"], {"a": None}, None], "string", ['[1, "ü"]', '{"a": null}', None]),
        ([2**63, 1], "string", ["9223372036854775808", "1"]),
        ([None, None], "string", [None, None]),
        ([], "string", []),
    ],
)
def test_a_column_takes_the_type_of_its_values(values: list[Any], type_name: str, expected: list[Any]) -> None:
    column = json_column(values)
    assert str(column.type) == type_name
    assert column.to_pylist() == expected


def test_text_that_is_no_unicode_is_shown_instead_of_failing() -> None:
    assert text_column(["broken \ud800 text", "fine"]).to_pylist() == ["broken ? text", "fine"]
    assert json_column(["broken \ud800"]).to_pylist() == ["broken ?"]
