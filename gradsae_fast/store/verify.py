"""Is every byte of a store still what was committed, and what to recompute where it is not."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from gradsae_fast.errors import FormatError, StoreError
from gradsae_fast.store.arrays.stored import METADATA, SHARD, StoredArray
from gradsae_fast.store.format.claims import check_claims
from gradsae_fast.store.places.ahead import expect
from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.durable import LONGEST_DOCUMENT, TEMPORARY, read_document
from gradsae_fast.store.places.links import PlainFolders, read_pieces, read_plain, refuse_links
from gradsae_fast.store.places.place import Place, entries, key_below, place_of
from gradsae_fast.store.records.commits import COMMITS, CommitRecord, find_records, missing_objects, read_record
from gradsae_fast.store.records.effective import effective
from gradsae_fast.store.records.facts import FACTS
from gradsae_fast.store.records.generations import GENERATIONS, read_generations, refuse_stray_segments
from gradsae_fast.store.records.identity import RUN_FILE, RunRecord, read_run
from gradsae_fast.store.records.objects import ObjectRecord, describe_pieces
from gradsae_fast.store.records.revisions import (
    COPIES,
    REVISIONS,
    listed_revisions,
    read_revision,
    read_revisions,
    revision_copy,
    revision_record,
)
from gradsae_fast.store.sidecars.described import described_record
from gradsae_fast.store.sidecars.dictionary import dictionary_record
from gradsae_fast.store.sidecars.exact import rooms as exact_rooms
from gradsae_fast.store.sidecars.index import index_records, stale_index

_MOST_GAPS = 100  # missing records that are named: a number in a file's name may be any
DROPPED = "dropped"  # where `repair` moves the records that it takes out


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: in which segment (None: the run's own files), object below the store, and chunk."""

    segment: int | None
    object: str
    chunk: int | None
    what: str

    def __str__(self) -> str:
        where = "run" if self.segment is None else f"segment {self.segment}"
        chunk = "" if self.chunk is None else f", chunk {self.chunk}"
        return f"{where}, {self.object}{chunk}: {self.what}"


def verify(path: str | Place, quick: bool = False) -> list[Fault]:
    """Check a store and return what is wrong; an empty list means that nothing is.

    Args:
        path: the store's folder.
        quick: check only that objects exist with their lengths, and the checksums of metadata; else read and decode
            every byte.

    Raises:
        StoreError: not a store.
        FormatError: written by a newer release.
    """
    store = place_of(str(path))  # with a client of its own, which has nothing in memory of what is to be checked
    if not (store / RUN_FILE).exists():
        read_run(store)
    refuse_links(store)
    revisions = list(_revision_faults(store))
    return [
        *_run_faults(store),
        *_dictionary_faults(store, quick),
        *_described_faults(store, quick),
        *_index_faults(store, quick),
        *revisions,
        *_segment_faults(store, quick, revised=not any(fault.object.startswith(REVISIONS) for fault in revisions)),
        *_exact_faults(store, quick),
    ]


def _run_faults(store: Place) -> Iterator[Fault]:
    try:
        run = read_run(store)
    except FormatError:
        raise
    except StoreError as error:
        yield Fault(segment=None, object=RUN_FILE, chunk=None, what=str(error))
    else:
        yield from _generation_faults(store, run)
    if (store / FACTS).is_dir():
        for path in entries(store / FACTS):
            if not path.name.startswith(TEMPORARY):
                yield from _document_faults(store, path)


def _generation_faults(store: Place, run: RunRecord) -> Iterator[Fault]:
    """Records of generations that are damaged; where none is, what does not fit together."""
    damaged = [fault for path in entries(store / GENERATIONS, "*.json") for fault in _document_faults(store, path)]
    yield from damaged
    if damaged:
        return
    try:
        generations = read_generations(store, run)
        if (store / COMMITS).is_dir():
            refuse_stray_segments(store, generations, list(find_records(store)))
    except FormatError:
        raise
    except StoreError as error:
        yield Fault(segment=None, object=GENERATIONS, chunk=None, what=str(error))


def _document_faults(store: Place, path: Place) -> Iterator[Fault]:
    try:
        read_document(path)
    except StoreError as error:
        yield Fault(segment=None, object=key_below(path, store), chunk=None, what=str(error))


def _dictionary_faults(store: Place, quick: bool) -> Iterator[Fault]:
    path = dictionary_record(store)
    if path.exists():
        yield from _record_faults(store, None, path, quick)


def _described_faults(store: Place, quick: bool) -> Iterator[Fault]:
    """Faults of what decoder rows say; none of tables that are replaced meanwhile."""
    path = described_record(store)
    if path.exists():
        before = _bytes(path)
        faults = list(_record_faults(store, None, path, quick))
        if _bytes(path) == before:
            yield from faults


def _index_faults(store: Place, quick: bool) -> Iterator[Fault]:
    """Faults of the index; none of one that is made anew meanwhile."""
    for path in index_records(store):
        try:
            before = _bytes(path)
            faults = list(_record_faults(store, None, path, quick))
            is_there = _bytes(path) == before
        except FileNotFoundError:
            continue
        if is_there:
            yield from faults


def _revision_faults(store: Place) -> Iterator[Fault]:
    """Revision records that are missing or damaged, and copies that differ; where none is, what does not fit together.

    A copy that is missing is no fault: a process may have been killed before it wrote it, and the next one does.
    """
    records, copies = listed_revisions(store, REVISIONS), listed_revisions(store, COPIES)
    faults = []
    gaps = (number for number in range(1, max(records | copies, default=0)) if number not in records | copies)
    for number in sorted({*records, *copies, *islice(gaps, _MOST_GAPS)}):
        record, copy = revision_record(store, number), revision_copy(store, number)
        what = "is missing" if number not in records else _unreadable(record)
        if what is not None:
            faults.append(Fault(segment=None, object=f"{REVISIONS}/{record.name}", chunk=None, what=what))
        elif number in copies and _bytes(copy) != _bytes(record):
            faults.append(Fault(segment=None, object=f"{COPIES}/{copy.name}", chunk=None, what="is not its record"))
    yield from faults
    if records and not any(fault.object.startswith(REVISIONS) for fault in faults):
        try:
            effective({}, read_revisions(store), store)
        except StoreError as error:
            yield Fault(segment=None, object=REVISIONS, chunk=None, what=str(error))


def _bytes(path: Place) -> bytes:
    """A record's bytes, to see later whether it is still the same; of one that cannot be read, why."""
    try:
        return read_plain(path, LONGEST_DOCUMENT)
    except StoreError as error:
        return str(error).encode()


def _unreadable(record: Place) -> str | None:
    try:
        read_revision(record)
    except FormatError:
        raise
    except StoreError as error:
        return str(error)
    return None


def _segment_faults(store: Place, quick: bool, *, revised: bool) -> Iterator[Fault]:
    """Faults of the segments that readers see. Of those that were replaced, only the commit records are looked at.

    Where the revisions cannot be read (not `revised`), nobody knows which these are: then of none more than the record.
    """
    try:
        paths = find_records(store)
    except FileNotFoundError:
        yield Fault(segment=None, object=COMMITS, chunk=None, what="the folder is missing: half-copied?")
        return
    replaced = effective({}, read_revisions(store), store) if revised else None
    records: dict[int, CommitRecord] = {}
    for index, path in paths.items():
        record, faults = _read(store, index, path, is_segment=True)
        yield from faults
        if record is not None and replaced is not None and index not in replaced.replaced:
            yield from _object_faults(store, index, record, quick)
        records |= {} if record is None else {index: record}
    if replaced is not None:
        try:
            now = effective(records, read_revisions(store), store)
            stale = stale_index(store, paths, now) if len(records) == len(paths) else None
        except StoreError as error:
            yield Fault(segment=None, object=REVISIONS, chunk=None, what=str(error))
        else:
            if stale is not None:
                what = "is of other segments than those that are there: `gradsae index` makes it anew"
                yield Fault(segment=None, object=key_below(stale, store), chunk=None, what=what)
        for index, record in replaced.records.items():
            yield from _object_faults(store, index, record, quick)


def _exact_faults(store: Place, quick: bool) -> Iterator[Fault]:
    """Faults of the exact effects, each of the segment whose effects they are; none of what is deleted meanwhile."""
    for room in exact_rooms(store):
        name = key_below(room, store)
        for index, path in find_records(room).items():
            try:
                before = _bytes(path)
                faults = list(_record_faults(room, index, path, quick))
                is_there = _bytes(path) == before
            except FileNotFoundError:
                continue
            if is_there:
                yield from (dataclasses.replace(fault, object=f"{name}/{fault.object}") for fault in faults)


def _record_faults(store: Place, index: int | None, path: Place, quick: bool) -> Iterator[Fault]:
    commit, faults = _read(store, index, path)
    yield from faults
    if commit is not None:
        yield from _object_faults(store, index, commit, quick)


def _read(
    store: Place, index: int | None, path: Place, *, is_segment: bool = False
) -> tuple[CommitRecord | None, list[Fault]]:
    """Read a record; None where it is not sound, and why."""
    name = key_below(path, store)
    try:
        commit = read_record(path)
        if is_segment and index is not None and commit.facts.get("segment") == index:
            check_claims(commit.facts, index, path)
    except FormatError:
        raise
    except StoreError as error:
        return None, [Fault(segment=index, object=name, chunk=None, what=str(error))]
    if commit.facts.get("segment") != index:
        what = f"is the record of segment {commit.facts.get('segment')}"
        return None, [Fault(segment=index, object=name, chunk=None, what=what)]
    return commit, []


def _object_faults(store: Place, index: int | None, commit: CommitRecord, quick: bool) -> Iterator[Fault]:
    wrong = dict(missing_objects(store, commit))
    for key, what in wrong.items():
        yield Fault(segment=index, object=f"{commit.folder}/{key}", chunk=None, what=what)
    present = [record for record in commit.objects if record.key not in wrong]
    if quick:
        present = [record for record in present if record.key.endswith(METADATA)]
    damaged = dict(_checksum_faults(store, commit.folder, present))
    intact = [record.key for record in present if record.key not in damaged]
    wrong |= damaged
    for key, what in damaged.items():
        for chunk in _damaged_chunks(store / commit.folder, key, wrong) or [None]:
            yield Fault(segment=index, object=f"{commit.folder}/{key}", chunk=chunk, what=what)
    for key in intact:
        for chunk in _damaged_chunks(store / commit.folder, key, wrong):
            yield Fault(segment=index, object=f"{commit.folder}/{key}", chunk=chunk, what="does not decode")


def _checksum_faults(store: Place, folder: str, records: list[ObjectRecord]) -> Iterator[tuple[str, str]]:
    """Yield (key, what) of every object whose bytes are not the committed ones."""
    plain = PlainFolders(store)
    if isinstance(store, BucketPath):
        expect(store / folder / record.key for record in records)
    for record in records:
        try:
            plain.check(f"{folder}/{record.key}".rpartition("/")[0])
            got = describe_pieces(record.key, read_pieces(store / folder / record.key))
        except OSError as error:
            yield record.key, f"cannot be read ({error})"
            continue
        if got.crc32c != record.crc32c:
            yield record.key, f"crc32c is {got.crc32c:08x}, committed was {record.crc32c:08x}"
        elif got != record:
            yield record.key, f"sha256 is {got.sha256}, committed was {record.sha256}: exchanged with another object"


def _damaged_chunks(folder: Place, key: str, wrong: dict[str, str]) -> list[int | None]:
    """Return the chunks of a shard that do not decode; [None] where its index cannot be read.

    Empty for anything but a shard, and for a shard whose metadata is `wrong` itself.
    """
    array = key.removesuffix(SHARD)
    if array == key or f"{array}{METADATA}" in wrong:
        return []
    try:
        return [*StoredArray(folder / array, key).damaged_chunks()]
    except StoreError:
        return [None]
