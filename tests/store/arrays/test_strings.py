"""Strings and JSON values as arrays."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradsae_fast.store.arrays.strings import decode_json, decode_strings, encode_json, encode_strings


@settings(deadline=None)
@given(st.lists(st.text(st.characters())))
@example(["", "\x00", "\ud800 alone", "", "naïve 文 \U0001f600"])
@example(["x" * 1_000_000])
def test_any_text_comes_back(strings: list[str]) -> None:
    assert decode_strings(*encode_strings(strings)) == strings


def test_json_values_come_back_with_their_types() -> None:
    values = [None, True, 1, 1.5, "é\x00\ud800", [1, [2]], {"b": 1, "a": None}, -math.inf]
    assert decode_json(*encode_json(values)) == values
    assert math.isnan(decode_json(*encode_json([math.nan]))[0])
