"""Where a document lies, by its key: 64-bit hashes in order, found by looking into a few chunks.

D documents of the store. A hash may be that of several keys, and a key that of several documents: the reader compares
the keys themselves.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from gradsae_fast.store.index import Placed, StoreIndex
from gradsae_fast.store.layout import Array, ArraySpec, place
from gradsae_fast.store.segment import StoredSegment

_STEP = 1 << 12

KEYS = (
    ArraySpec(
        name="fence", dtype="uint64", dims=("fence",), meaning=f"hash of every {_STEP}th document in order of hash"
    ),
    ArraySpec(
        name="hash",
        dtype="uint64",
        dims=("document",),
        meaning="the first 8 bytes of blake2b-64 of the key, little endian, ascending",
    ),
    ArraySpec(name="segment", dtype="uint32", dims=("document",), meaning="segment of the document with that hash"),
    ArraySpec(name="slot", dtype="uint32", dims=("document",), meaning="its position in the segment"),
)


def key_hash(key: str) -> int:
    """Return the hash of a document key."""
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def key_arrays(segments: Sequence[StoredSegment]) -> Placed:
    """Yield the arrays of the key index of these segments."""
    hashes, places = [np.zeros(0, np.uint64)], [np.zeros((2, 0), np.uint32)]
    for segment in segments:
        keys = segment.document_keys()
        hashes.append(np.fromiter(map(key_hash, keys), np.uint64, len(keys)))
        places.append(np.stack([np.full(len(keys), segment.index), np.arange(len(keys))]).astype(np.uint32))
    hash_D, place_2D = np.concatenate(hashes), np.concatenate(places, axis=1)
    order_D = np.argsort(hash_D, kind="stable")
    sorted_D = hash_D[order_D]
    values = {
        "fence": sorted_D[::_STEP],
        "hash": sorted_D,
        "segment": place_2D[0, order_D],
        "slot": place_2D[1, order_D],
    }
    yield from place("keys", KEYS, values)


def find_key(index: StoreIndex, key: str) -> list[tuple[int, int]]:
    """Return (segment, slot) of every document whose key has this key's hash."""
    wanted = np.uint64(key_hash(key))
    index.expect(f"keys/{spec.name}" for spec in KEYS)
    fence, hash_D = index.array("keys/fence").read(), index.array("keys/hash")
    first = max(0, int(np.searchsorted(fence, wanted, side="left")) - 1) * _STEP
    last = min(len(hash_D), int(np.searchsorted(fence, wanted, side="right")) * _STEP)
    if first >= last:
        return []
    part: Array = hash_D.read(first, last)
    begin, end = (first + int(np.searchsorted(part, wanted, side=side)) for side in ("left", "right"))
    segments, slots = (index.array(f"keys/{name}").read(begin, end).tolist() for name in ("segment", "slot"))
    return list(zip(segments, slots, strict=True))
