import pytest

from gradsae_fast.corpus.digest import canonical_json, digest_of


def test_equal_values_have_one_spelling() -> None:
    assert canonical_json({"b": [1, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,null]}'
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})
    assert digest_of([1, 2]) == digest_of((1, 2)) != digest_of([2, 1])


def test_what_json_cannot_say_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_of({"a": float("nan")})
