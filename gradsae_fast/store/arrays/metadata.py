"""What the metadata of a stored array says, as far as reading it needs: checked before anything is allocated.

A store may come from anyone. So a number of elements is believed as far as the shard's index can have chunks for them,
a chunk has at most 64 Ki elements, and it is decoded into memory of exactly its size, whatever its bytes ask for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.codecs import chunk_decoder
from gradsae_fast.store.format.layout import Array

CHUNK_ELEMENTS = 1 << 16
LONGEST_METADATA = 1 << 16  # bytes; what writers make takes about a thousand
_MOST_ELEMENTS = 1 << 48
_DTYPES = frozenset(
    f"{kind}{bits}" for kind, sizes in (("uint", (8, 16, 32, 64)), ("int", (8, 16, 32, 64))) for bits in sizes
) | {"float32", "float64"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayMetadata:
    """How many elements of what there are, and in which chunks."""

    length: int
    dtype: np.dtype[Any]
    chunk: int  # elements of each
    decode: Callable[[bytes], Array]  # of the bytes of one chunk, to exactly its elements

    @property
    def longest_chunk(self) -> int:
        """Bytes that a chunk's encoded form may have: no codec makes numbers much longer than they are."""
        return 2 * self.chunk * self.dtype.itemsize + 4096


def parse_metadata(data: bytes) -> ArrayMetadata:
    """Return what the object `zarr.json` of an array says.

    Raises:
        StoreError: not the metadata of an array that this release writes; says where.
    """
    if len(data) > LONGEST_METADATA:
        raise StoreError(f"it has more than {LONGEST_METADATA} bytes")
    try:
        metadata = json.loads(data)
        (length,) = metadata["shape"]
        named = metadata["data_type"]
        sharding = metadata["codecs"][0]["configuration"]
        (chunk,) = sharding["chunk_shape"]
        codecs = [{"name": codec["name"]} for codec in sharding["codecs"]]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error
    if type(length) is not int or not 0 <= length <= _MOST_ELEMENTS:
        raise StoreError(f"shape is [{length!r:.40}]; expected a number of elements")
    if type(chunk) is not int or not 0 < chunk <= CHUNK_ELEMENTS:
        raise StoreError(f"chunk_shape is [{chunk!r:.40}]; expected 1 to {CHUNK_ELEMENTS} elements")
    if not isinstance(named, str) or named not in _DTYPES:
        raise StoreError(f"data_type is {named!r:.40}; expected one of {', '.join(sorted(_DTYPES))}")
    dtype = np.dtype(named)
    return ArrayMetadata(length=length, dtype=dtype, chunk=chunk, decode=chunk_decoder(codecs, dtype, chunk))
