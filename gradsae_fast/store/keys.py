"""Where a document lies, by its key: 64-bit hashes in order, found by looking into a few chunks.

D documents of the store, A keys that are asked for at once. A hash may be that of several keys, and a key that of
several documents: the reader compares the keys themselves.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter

import numpy as np

from gradsae_fast.errors import CorpusError
from gradsae_fast.store.format.layout import Array, ArraySpec, place
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.reader import open_scores
from gradsae_fast.store.records.commits import find_records
from gradsae_fast.store.records.generations import count_generations
from gradsae_fast.store.records.revisions import find_revisions
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.index import Placed, StoreIndex

_STEP = 1 << 12
_AT_ONCE = 1 << 16

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
    number_S = np.array([segment.index for segment in segments], np.uint32)
    hash_D, which_D, slot_D = _in_order(segments)
    values = {"fence": hash_D[::_STEP], "hash": hash_D, "segment": number_S[which_D], "slot": slot_D}
    yield from place("keys", KEYS, values)


def _in_order(segments: Iterable[StoredSegment]) -> tuple[Array, Array, Array]:
    """Hash, segment (counted from 0) and slot of every document, in order of hash and then of the corpus."""
    hashes, places = [np.zeros(0, np.uint64)], [np.zeros((2, 0), np.uint32)]
    for which, segment in enumerate(segments):
        keys = segment.document_keys()
        hashes.append(_hashes(keys))
        places.append(np.stack([np.full(len(keys), which), np.arange(len(keys))]).astype(np.uint32))
    hash_D, place_2D = np.concatenate(hashes), np.concatenate(places, axis=1)
    order_D = np.argsort(hash_D, kind="stable")
    return hash_D[order_D], place_2D[0, order_D], place_2D[1, order_D]


def _hashes(keys: Sequence[str]) -> Array:
    return np.fromiter(map(key_hash, keys), np.uint64, len(keys))


class KnownKeys:
    """The keys of the documents of some segments, to be asked whether others are among them: 16 bytes a document."""

    def __init__(self, segments: Iterable[StoredSegment]) -> None:
        self._segments = list(segments)
        self._hash_D, self._which_D, self._slot_D = _in_order(self._segments)

    def common(self, keys: Iterable[str]) -> dict[str, int]:
        """Return those of `keys` that are the key of a document, each with the document's segment."""
        found: dict[str, int] = {}
        unread = iter(keys)
        while asked := list(islice(unread, _AT_ONCE)):
            for which, hits in groupby(sorted(self._hits(asked)), itemgetter(0)):
                segment = self._segments[which]
                stored = segment.document_keys()
                found |= {key: segment.index for _, slot, key in hits if stored[slot] == key}
        return found

    def _hits(self, asked: Sequence[str]) -> Iterator[tuple[int, int, str]]:
        """Yield (segment, slot, key) where the hash of a document is that of a key."""
        hash_A = _hashes(asked)
        first_A = np.searchsorted(self._hash_D, hash_A, side="left")
        last_A = np.searchsorted(self._hash_D, hash_A, side="right")
        for at in np.flatnonzero(last_A > first_A).tolist():
            for entry in range(first_A[at], last_A[at]):
                yield int(self._which_D[entry]), int(self._slot_D[entry]), asked[at]


class OtherKeys:
    """The keys of all generations of a store but one, while others may be writing to them; each segment is read once.

    Args:
        store: the store.
        own: segments of the generation that is left out.
    """

    def __init__(self, store: Place, own: range) -> None:
        self._store = store
        self._own = own
        self._seen: tuple[set[int], int] = (set(), 0)  # segments and number of revisions that are known
        self._folders: set[Place] = set()
        self._known: list[KnownKeys] = []

    def refuse(self, keys: Iterable[str]) -> None:
        """Refuse documents whose keys are in the store by now.

        Raises:
            CorpusError: names a few of them.
            StoreError: a segment is damaged.
        """
        if count_generations(self._store) == 1:
            return
        others = {index for index in find_records(self._store) if index not in self._own}
        there = (others, len(find_revisions(self._store)))
        if there != self._seen:
            self._take()
            self._seen = there
        asked = list(keys)
        for known in self._known:
            refuse_common(self._store, known, asked)

    def _take(self) -> None:
        """Read the segments that have come; after a revision, which deletes some, all of them."""
        now = [one for one in open_scores(self._store, use_index=False).segments if one.index not in self._own]
        if not self._folders <= {segment.folder for segment in now}:
            self._known, self._folders = [], set()
        self._known.append(KnownKeys(segment for segment in now if segment.folder not in self._folders))
        self._folders |= {segment.folder for segment in now}


def repeated_keys(corpora: Sequence[Sequence[StoredSegment]]) -> dict[str, list[str]]:
    """Return the keys that documents of several corpora have, each with the labels of the segments they are in."""
    segments = [(number, segment) for number, corpus in enumerate(corpora) for segment in corpus]
    hash_D, which_D, slot_D = _in_order([segment for _, segment in segments])
    equal_D = np.flatnonzero(hash_D[1:] == hash_D[:-1])
    found: dict[str, dict[int, str]] = {}
    for entry in sorted({*equal_D.tolist(), *(equal_D + 1).tolist()}):
        corpus, segment = segments[int(which_D[entry])]
        found.setdefault(segment.key_of(int(slot_D[entry])), {}).setdefault(corpus, segment.label)
    return {key: list(labels.values()) for key, labels in found.items() if len(labels) > 1}


def refuse_common(store: Place, known: KnownKeys, keys: Iterable[str]) -> None:
    """Refuse documents whose keys the store has already.

    Raises:
        CorpusError: names a few of them.
    """
    common = known.common(keys)
    if common:
        few = ", ".join(f"{key!r} (segment {segment})" for key, segment in list(common.items())[:5])
        raise CorpusError(
            f"{store} has documents with {len(common):,} of these keys already: {few}; expected keys that are unique "
            "in the whole store: leave these documents out, choose another --id-column, or take the old ones out first "
            "with `gradsae drop`"
        )


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
