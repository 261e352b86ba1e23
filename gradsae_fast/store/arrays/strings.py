"""Lists of strings and JSON values as two plain arrays: all bytes end to end, and where each entry ends.

Zarr's own string types are object arrays without a settled specification; these two arrays every reader understands.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.claims import LONGEST_STRINGS
from gradsae_fast.store.format.layout import Array

_REMEDY = "run `gradsae verify` on the store, or copy it again from where it came"


def encode_strings(strings: Sequence[str]) -> tuple[Array, Array]:
    """Return (bytes uint8, offsets int64 [len + 1]). Lone surrogates survive (`surrogatepass`), and so does NUL.

    Raises:
        StoreError: together they are longer than any reader takes them.
    """
    parts = [string.encode("utf-8", "surrogatepass") for string in strings]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    if offsets[-1] > LONGEST_STRINGS:
        raise StoreError(
            f"a column of {offsets[-1]:,} bytes of text; expected at most {LONGEST_STRINGS:,} in a segment"
        )
    return np.frombuffer(b"".join(parts), np.uint8), offsets


def decode_strings(data: Array, offsets: Array, label: str = "strings") -> list[str]:
    """Read back what `encode_strings` wrote; `label` is what errors call it.

    Raises:
        StoreError: the offsets are not borders in the bytes, or the bytes are not UTF-8.
    """
    text = data.tobytes()
    edges = offsets.tolist()
    if not edges or edges[0] != 0 or edges[-1] != len(text) or (offsets[1:] < offsets[:-1]).any():
        raise StoreError(f"{label}: its offsets are not borders in its {len(text)} bytes; {_REMEDY}")
    try:
        return [text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(edges)]
    except UnicodeDecodeError as error:
        raise StoreError(f"{label}: its bytes are not UTF-8 ({error}); {_REMEDY}") from error


class JsonText(str):
    """The JSON text of a value as it was stored, to be stored again as it stands."""

    __slots__ = ()


def encode_json(values: Sequence[Any]) -> tuple[Array, Array]:
    """Write each value as JSON (NaN and Infinity as Python spells them), then as strings."""
    return encode_strings(
        [
            value if isinstance(value, JsonText) else json.dumps(value, sort_keys=True, separators=(",", ":"))
            for value in values
        ]
    )


def decode_json(data: Array, offsets: Array, label: str = "JSON values") -> list[Any]:
    """Read back what `encode_json` wrote; as one list, which takes a tenth of the time of many small documents.

    Raises:
        StoreError: as `decode_strings`, or an entry is not one JSON value.
    """
    strings = decode_strings(data, offsets, label)
    try:
        values: list[Any] = json.loads(f"[{','.join(strings)}]")
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{label}: an entry is not a JSON value ({error}); {_REMEDY}") from error
    if len(values) != len(strings):
        raise StoreError(f"{label}: {len(strings)} entries hold {len(values)} JSON values; {_REMEDY}")
    return values
