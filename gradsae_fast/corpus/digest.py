"""Digests of JSON values: equal values give equal digests, on any machine and in any order of keys."""

import hashlib
import json


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII. ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of `value`, in hexadecimal.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()
