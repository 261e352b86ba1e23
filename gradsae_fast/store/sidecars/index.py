"""The index over a whole store: what questions look up before, or in place of, reading every segment.

    index/<generation>.json             its commit record
    index/<generation>-<attempt>/       its Zarr group

It is made from committed segments, by the commit protocol, and can be made again at any time: it is never the source of
anything. The generation is a digest of the checksums of all commit records and revisions, so an index of other
segments, or of a segment that was repaired and written anew, has another name and is not looked at.

Its record also sums up the commit records: a store with an index is opened without parsing them.

Letters: D documents of the store, S committed segments, C latents, E leading tokens.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.arrays.encoding import group_objects
from gradsae_fast.store.arrays.stored import METADATA, SHARD, StoredArray
from gradsae_fast.store.format.claims import COLUMNS, check_columns, check_counts
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import FORMAT_VERSION, Array, ArraySpec
from gradsae_fast.store.format.safe_key import checked_folder
from gradsae_fast.store.places.ahead import expect, read_heads
from gradsae_fast.store.places.durable import TEMPORARY, make_folder, remove_tree, storage_errors, sync
from gradsae_fast.store.places.links import PlainFolders
from gradsae_fast.store.places.place import Place, below
from gradsae_fast.store.records.commits import (
    SEGMENTS,
    CommitRecord,
    SegmentSummary,
    find_records,
    publish,
    read_record,
)
from gradsae_fast.store.records.effective import Effective
from gradsae_fast.store.records.revisions import find_revisions

INDEX = "index"
CLAIM = "claim"  # of the worker that makes the index in a bucket, where no lock keeps the others from it
INDEX_FORMAT = "gradsae.index"
_INDEX_VERSION = 2  # of what is in it: another one makes another generation
_BEFORE_CHECKSUM = b'{"checksum": "'  # how every document begins, as its keys are sorted
_CHECKSUM_DIGITS = 8

Placed = Iterator[tuple[str, ArraySpec, Array]]


def generation_of(commits: Mapping[int, Place], revisions: Sequence[Place] = ()) -> str:
    """Return the name of the index of the segments that come of these commit records, by segment, and revisions.

    Of each record its length and the checksum that it begins with are read: of many records, a tenth of the time.

    Raises:
        OSError: one cannot be read.
    """
    names = [*map(str, commits), *(f"revision {number}" for number in range(1, len(revisions) + 1))]
    heads = read_heads([*commits.values(), *revisions], len(_BEFORE_CHECKSUM) + _CHECKSUM_DIGITS)
    stamps = [f"{length} {head[len(_BEFORE_CHECKSUM) :].decode('ascii', 'replace')}" for length, head in heads]
    lines = [f"{name} {stamp}\n" for name, stamp in zip(names, stamps, strict=True)]
    return hashlib.sha256("".join([f"{INDEX_FORMAT} {_INDEX_VERSION}\n", *lines]).encode()).hexdigest()[:16]


def current_generation(store: Place) -> str:
    """Return the name of the index of the segments that a store has now.

    Raises:
        StoreError: a revision is missing.
        OSError: a record cannot be read.
    """
    commits = find_records(store)  # first: what revisions replace has been committed before them
    return generation_of(commits, find_revisions(store))


def index_record(store: Place, generation: str) -> Place:
    """Return where the record lies that makes an index visible."""
    return store / INDEX / f"{generation}.json"


def index_records(store: Place) -> list[Place]:
    """List the records of all indices of a store, stale ones too."""
    return sorted(path for path in (store / INDEX).glob("*.json") if not path.name.startswith(TEMPORARY))


def read_index(store: Place, commits: Mapping[int, Place], revisions: Sequence[Place] = ()) -> "StoreIndex | None":
    """Return the index of the segments that come of these commit records, by segment, and revisions; or None.

    Raises:
        StoreError: it is damaged.
        FormatError: written by a newer release.
    """
    path = index_record(store, generation_of(commits, revisions))
    try:
        return StoreIndex(store, read_record(path))
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise StoreError(f"{error}; {_remedy(store)}") from error


def publish_index(
    store: Place,
    generation: str,
    summaries: Mapping[int, SegmentSummary],
    parts: Iterable[Placed],
    profile: str,
    facts: dict[str, Any],
) -> "StoreIndex":
    """Write the arrays of an index and make it visible in place of any other; for the holder of the writer's lock.

    In a bucket nobody holds it, and other processes may be making indices too: there the older ones go afterwards, and
    nothing of those that are being made.

    Raises:
        StoreError: the disk is full, read-only or broken.
    """
    path = index_record(store, generation)
    attributes = {"": {"format": INDEX_FORMAT, "format_version": FORMAT_VERSION}}
    with storage_errors(store):
        make_folder(store / INDEX)
        older = dict[Place, str]()
        if isinstance(store, Path):
            _clear(store)
        else:
            older = {record: _named_by(record) for record in index_records(store)}
            path.unlink(missing_ok=True)  # one of the same segments that is made anew
        objects = group_objects(parts, attributes, profile)
        described = {**facts, "generation": generation, **_rolled_up(summaries)}
        record = publish(store, f"{INDEX}/{generation}-{token_hex(8)}", path, objects, described)
        _remove(store, older, record.folder, path)
    return StoreIndex(store, record)


def _named_by(record: Place) -> str:
    """The folder that the record of an index names; empty where it is damaged or gone."""
    try:
        return read_record(record).folder
    except (StoreError, FileNotFoundError):
        return ""


def _remove(store: Place, older: Mapping[Place, str], kept: str, path: Place) -> None:
    """Delete records of indices but that at `path`, then the folders that they named but the one that is `kept`."""
    for record in older.keys() - {path}:
        record.unlink(missing_ok=True)
    for folder in {*older.values()} - {"", kept}:
        remove_tree(store / folder)
    if not isinstance(store, Path):
        (store / INDEX / CLAIM).unlink(missing_ok=True)


def remove_unfinished(store: Place) -> None:
    """Delete folders of indices that no record names, and the claim of who made one; for a process that is alone."""
    (store / INDEX / CLAIM).unlink(missing_ok=True)
    named = {_named_by(record) for record in index_records(store)}
    for path in (store / INDEX).iterdir() if (store / INDEX).is_dir() else ():
        if path.is_dir() and f"{INDEX}/{path.name}" not in named:
            remove_tree(path)


def refuse_stale(index: "StoreIndex", commits: Collection[int], revised: Effective, store: Place) -> None:
    """Refuse an index of other segments than those that come of these commit records and what revisions made of them.

    Of commit records only the numbers are looked at, as reading them is what the index is there to save; `verify` does.

    Raises:
        StoreError: it lacks a segment, or has one that is not there; names the first.
    """
    shown = {number: record.digest for number, record in revised.visible.items()}
    own = set(commits) - revised.replaced
    maybe_empty = own & revised.tombstones.keys()  # computed again: without the documents that were dropped before
    wrong = (shown.keys() | own - maybe_empty) - index.summaries.keys()
    wrong |= {
        number
        for number, summary in index.summaries.items()
        if number not in own and shown.get(number) != summary.digest
    }
    if wrong:
        raise StoreError(
            f"{index} of {store} is not of the segments that are there: it differs in segment {min(wrong)}; "
            f"{_remedy(store)}"
        )


def stale_index(store: Place, commits: Mapping[int, Place], now: Effective) -> Place | None:
    """Return the record of the index that readers believe, if it is not of the segments that they see without it.

    Raises:
        OSError: a commit record cannot be read.
    """
    path = index_record(store, generation_of(commits, find_revisions(store)))
    try:
        index = StoreIndex(store, read_record(path))
    except (FileNotFoundError, StoreError):
        return None  # there is none, or it is damaged, which is another fault
    shown = {number: SegmentSummary.of(record) for number, record in now.visible.items()}
    return None if index.summaries == shown else path


def _clear(store: Path) -> None:
    """Delete every index, the records first: none is ever there without its objects.

    Before a new one is written and not after it: who is killed in between leaves none, and so one is made again.
    """
    for record in index_records(store):
        record.unlink(missing_ok=True)
    sync(store / INDEX)
    for leftover in (store / INDEX).iterdir():
        if leftover.is_dir():
            remove_tree(leftover)
        else:
            leftover.unlink(missing_ok=True)


class StoreIndex:
    """The index of an open store; made by `read_index`.

    Attributes:
        facts: what the index says of itself.
        summaries: of each committed segment.
        digest: of all its bytes.
    """

    def __init__(self, store: Place, record: CommitRecord) -> None:
        fields = Fields(record.facts, f"the record of {record.folder}")
        for name in ("num_documents", "num_tokens"):
            fields.inside("counted").count(name)
        for name in fields.mapping("leaders"):
            fields.inside("leaders").count(name)
        self.facts = record.facts
        self.summaries = dict(_summaries(record))
        self.digest = record.digest
        self.num_bytes = record.num_bytes
        self._store = store
        self._record = record
        self._plain = PlainFolders(store)
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
            self._plain.check(f"{self._record.folder}/{path}")
            self._arrays[path] = IndexArray(self._store, f"{self._record.folder}/{path}")
        return self._arrays[path]

    def expect(self, paths: Iterable[str]) -> None:
        """Tell the system that these arrays will be read; see `ahead`."""
        folder = self._store / self._record.folder
        expect(below(folder, f"{path}/{name}") for path in paths for name in (METADATA, SHARD))

    def __repr__(self) -> str:
        return f"<StoreIndex {self._record.folder}: {len(self.summaries)} segments, {self.num_bytes:,} bytes>"


class IndexArray(StoredArray):
    """An array of an index, whose faults are mended by making the index anew."""

    def __init__(self, store: Place, path: str) -> None:
        self._store = store
        self._path = path
        super().__init__(below(store, path), f"{store}, {path}")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._store}, {self._path}: {what}; {_remedy(self._store)}, then open the store again")


def _remedy(store: Place) -> str:
    return f"the index holds nothing of its own: `gradsae index {store}` makes it anew"


def _rolled_up(summaries: Mapping[int, SegmentSummary]) -> dict[str, Any]:
    """The summaries as JSON; what segments share is said once, where a segment differs it says so itself."""
    first = next(iter(summaries.values()))
    shared = {name: first.facts[name] for name in COLUMNS}
    segments = []
    for summary in summaries.values():
        own = {name: value for name, value in summary.facts.items() if name not in shared or value != shared[name]}
        segments.append({**asdict(summary), "facts": own})
    return {"shared": shared, "segments": segments}


def _summaries(record: CommitRecord) -> Iterator[tuple[int, SegmentSummary]]:
    where = f"the record of {record.folder}"
    fields = Fields(record.facts, where)
    shared = fields.mapping("shared")
    check_columns(shared, where)
    for found in fields.each("segments"):
        own = found.mapping("facts")
        whole = {**shared, **own}
        if not own.keys().isdisjoint(shared):
            check_columns(whole, where)
        check_counts(whole, where)
        folder = checked_folder(found.text("folder"), SEGMENTS, where)
        signed = tuple(found.texts("signed"))
        yield whole["segment"], SegmentSummary(folder=folder, digest=found.text("digest"), facts=whole, signed=signed)
