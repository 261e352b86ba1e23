"""The index over a whole store: what questions look up before, or in place of, reading every segment.

    index/<generation>.json             its commit record
    index/<generation>-<attempt>/       its Zarr group

It is made from committed segments, by the commit protocol, and can be made again at any time: it is never the source of
anything. The generation is a digest of the bytes of all commit records, so an index of other segments, or of a segment
that was repaired and written anew, has another name and is not looked at.

Its record also sums up the commit records: a store with an index is opened without parsing them.

Letters: D documents of the store, S committed segments, C latents, E leading tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.ahead import expect
from gradsae_fast.store.arrays import METADATA, SHARD, StoredArray
from gradsae_fast.store.codecs import checksum
from gradsae_fast.store.commits import CommitRecord, SegmentSummary, publish, read_record
from gradsae_fast.store.durable import TEMPORARY, make_folder, remove_tree, storage_errors, sync
from gradsae_fast.store.encoding import group_objects
from gradsae_fast.store.layout import FORMAT_VERSION, Array, ArraySpec

INDEX = "index"
INDEX_FORMAT = "gradsae.index"
_INDEX_VERSION = 1  # of what is in it: another one makes another generation
_SHARED = ("sites", "objectives", "values", "columns")

Placed = Iterator[tuple[str, ArraySpec, Array]]


def generation_of(records: Mapping[int, bytes]) -> str:
    """Return the name of the index of the segments whose commit records have these bytes."""
    lines = [f"{INDEX_FORMAT} {_INDEX_VERSION}\n"]
    lines += [f"{index} {len(data)} {checksum(data):08x}\n" for index, data in sorted(records.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def index_record(store: Path, generation: str) -> Path:
    """Return where the record lies that makes an index visible."""
    return store / INDEX / f"{generation}.json"


def index_records(store: Path) -> list[Path]:
    """List the records of all indices of a store, stale ones too."""
    return sorted(path for path in (store / INDEX).glob("*.json") if not path.name.startswith(TEMPORARY))


def read_index(store: Path, records: Mapping[int, bytes]) -> "StoreIndex | None":
    """Return the index of exactly these segments, given the bytes of their commit records; None where there is none.

    Raises:
        StoreError: it is damaged.
        FormatError: written by a newer release.
    """
    path = index_record(store, generation_of(records))
    try:
        return StoreIndex(store, read_record(path))
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"{error}; {_remedy(store)}") from error


def publish_index(
    store: Path,
    generation: str,
    summaries: Mapping[int, SegmentSummary],
    parts: Iterable[Placed],
    profile: str,
    facts: dict[str, Any],
) -> "StoreIndex":
    """Write the arrays of an index and make it visible in place of any other; for the holder of the writer's lock.

    Raises:
        StoreError: the disk is full, read-only or broken.
    """
    path = index_record(store, generation)
    attributes = {"": {"format": INDEX_FORMAT, "format_version": FORMAT_VERSION}}
    with storage_errors(store):
        make_folder(store / INDEX)
        path.unlink(missing_ok=True)
        sync(store / INDEX)
        objects = group_objects(parts, attributes, profile)
        described = {**facts, "generation": generation, **_rolled_up(summaries)}
        record = publish(store, f"{INDEX}/{generation}-{token_hex(8)}", path, objects, described)
        for found in (store / INDEX).iterdir():
            if found.is_dir() and found != store / record.folder:
                remove_tree(found)
            elif not found.is_dir() and found != path:
                found.unlink()
    return StoreIndex(store, record)


class StoreIndex:
    """The index of an open store; made by `read_index`.

    Attributes:
        facts: what the index says of itself.
        summaries: of each committed segment.
        digest: of all its bytes.
    """

    def __init__(self, store: Path, record: CommitRecord) -> None:
        self.facts = record.facts
        self.summaries = dict(_summaries(record.facts))
        self.digest = record.digest
        self.num_bytes = record.num_bytes
        self._store = store
        self._record = record
        self._keys = {found.key.rpartition("/")[0] for found in record.objects}
        self._arrays: dict[str, IndexArray] = {}

    def __contains__(self, path: str) -> bool:
        """Whether the index has an array or a group of this path."""
        return path in self._keys

    def array(self, path: str) -> "IndexArray":
        """Return one of its arrays, to be read whole or in ranges.

        Raises:
            StoreError: it is damaged.
        """
        if path not in self._arrays:
            self._arrays[path] = IndexArray(self._store, f"{self._record.folder}/{path}")
        return self._arrays[path]

    def expect(self, paths: Iterable[str]) -> None:
        """Tell the system that these arrays will be read; see `ahead`."""
        folder = f"{self._store}/{self._record.folder}"
        expect(f"{folder}/{path}/{name}" for path in paths for name in (METADATA, SHARD))

    def __repr__(self) -> str:
        return f"<StoreIndex {self._record.folder}: {len(self.summaries)} segments, {self.num_bytes:,} bytes>"


class IndexArray(StoredArray):
    """An array of an index, whose faults are mended by making the index anew."""

    def __init__(self, store: Path, path: str) -> None:
        self._store = store
        self._path = path
        super().__init__(f"{store}/{path}", f"{store}, {path}")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._store}, {self._path}: {what}; {_remedy(self._store)}, then open the store again")


def _remedy(store: Path) -> str:
    return f"the index holds nothing of its own: `gradsae index {store}` makes it anew"


def _rolled_up(summaries: Mapping[int, SegmentSummary]) -> dict[str, Any]:
    """The summaries as JSON; what segments share is said once, where a segment differs it says so itself."""
    first = next(iter(summaries.values()))
    shared = {name: first.facts[name] for name in _SHARED}
    segments = []
    for summary in summaries.values():
        own = {name: value for name, value in summary.facts.items() if name not in shared or value != shared[name]}
        segments.append({**asdict(summary), "facts": own})
    return {"shared": shared, "segments": segments}


def _summaries(facts: Mapping[str, Any]) -> Iterator[tuple[int, SegmentSummary]]:
    for found in facts["segments"]:
        whole = {**facts["shared"], **found["facts"]}
        yield (
            int(whole["segment"]),
            SegmentSummary(folder=found["folder"], digest=found["digest"], facts=whole, signed=tuple(found["signed"])),
        )
