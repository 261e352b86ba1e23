"""Is every byte of a store still what was committed, and what to recompute where it is not."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from gradsae_fast.errors import FormatError, StoreError
from gradsae_fast.store.arrays import METADATA, SHARD, StoredArray
from gradsae_fast.store.commits import (
    COMMITS,
    ObjectRecord,
    describe,
    find_records,
    missing_objects,
    read_record,
    record_path,
)
from gradsae_fast.store.described import FOLDER as DESCRIBED_FOLDER
from gradsae_fast.store.described import described_record
from gradsae_fast.store.dictionary import DICTIONARY, dictionary_record
from gradsae_fast.store.durable import TEMPORARY, make_folder, read_document, storage_errors, sync
from gradsae_fast.store.exact import FOLDER as EXACT_FOLDER
from gradsae_fast.store.facts import FACTS
from gradsae_fast.store.identity import RUN_FILE, read_run
from gradsae_fast.store.index import INDEX, index_records
from gradsae_fast.store.lock import WriterLock

DROPPED = "dropped"


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


def verify(path: str | Path, quick: bool = False) -> list[Fault]:
    """Check a store and return what is wrong; an empty list means that nothing is.

    Args:
        path: the store's folder.
        quick: check only that objects exist with their lengths, and the checksums of metadata; else read and decode
            every byte.

    Raises:
        StoreError: not a store.
        FormatError: written by a newer release.
    """
    store = Path(path)
    if not (store / RUN_FILE).exists():
        read_run(store)
    return [
        *_run_faults(store),
        *_dictionary_faults(store, quick),
        *_described_faults(store, quick),
        *_index_faults(store, quick),
        *_segment_faults(store, quick),
        *_exact_faults(store, quick),
    ]


def repair(path: str | Path, *, tell: Callable[[str], None] | None = None) -> list[int]:
    """Drop every segment that `verify` finds damaged, and return their numbers; the next run recomputes exactly those.

    Commit records are moved to `dropped/`, those of the exact effects of a dropped segment too; nothing else that is
    sound is touched. A damaged dictionary, sidecar, description, index or segment's exact effects are dropped too;
    `tell` is told of each in a sentence, and how it is made again.

    Raises:
        StoreError: not a store, read-only, or a damaged `run.json`, which nothing can be recomputed from.
        BusyError: another process writes to the store.
    """
    store = Path(path)
    if not (store / RUN_FILE).exists():
        read_run(store)
    with storage_errors(store):
        lock = WriterLock(store)
        try:
            return _drop(store, verify(store), tell or (lambda _: None))
        finally:
            lock.release()


def _drop(store: Path, faults: list[Fault], tell: Callable[[str], None]) -> list[int]:
    exact = store / EXACT_FOLDER
    files = _damaged_files(store, faults)
    damaged = {fault.segment for fault in faults if fault.segment is not None and not _in_exact(fault)}
    inexact = damaged | {fault.segment for fault in faults if fault.segment is not None and _in_exact(fault)}
    inexact = {index for index in inexact if record_path(exact, index).exists()}
    paths = [record_path(store, index) for index in sorted(damaged)]
    paths += [*files, *(record_path(exact, index) for index in sorted(inexact))]
    for path in paths:
        make_folder(store / DROPPED)
        path.replace(store / DROPPED / f"{path.stem}-{token_hex(4)}{path.suffix}")
        sync(path.parent)
    if paths:
        sync(store / DROPPED)
    for path in files:
        tell(f"dropped {path.relative_to(store)}; the command that wrote it writes it again")
    if inexact:
        numbers = ", ".join(map(str, sorted(inexact)))
        tell(f"dropped the exact effects of segments {numbers}; extract with --exact-dense SHARE to measure them again")
    return sorted(damaged)


def _damaged_files(store: Path, faults: list[Fault]) -> list[Path]:
    """The run's own files to drop, each once: sidecars, and the records of dictionary, description and index."""
    records = {DICTIONARY: dictionary_record(store), DESCRIBED_FOLDER: described_record(store)}
    records |= {f"{INDEX}/{path.stem}": path for path in index_records(store)}
    files = []
    for fault in faults:
        if fault.object in (RUN_FILE, COMMITS):
            raise StoreError(f"{fault}; it cannot be recomputed: restore it from a copy, or extract to a new folder")
        if fault.segment is None:
            folder, _, rest = fault.object.partition("/")
            if folder == INDEX:  # it lies beside its record, in a folder named by the same generation
                folder = f"{INDEX}/{re.split('[-.]', rest)[0]}"
            files.append(records.get(folder, store / fault.object))
    return list(dict.fromkeys(files))


def _in_exact(fault: Fault) -> bool:
    return fault.object.startswith(f"{EXACT_FOLDER}/")


def _run_faults(store: Path) -> Iterator[Fault]:
    try:
        read_run(store)
    except FormatError:
        raise
    except StoreError as error:
        yield Fault(segment=None, object=RUN_FILE, chunk=None, what=str(error))
    if (store / FACTS).is_dir():
        for path in sorted((store / FACTS).iterdir()):
            if not path.name.startswith(TEMPORARY):
                yield from _document_faults(store, path)


def _document_faults(store: Path, path: Path) -> Iterator[Fault]:
    try:
        read_document(path)
    except StoreError as error:
        yield Fault(segment=None, object=str(path.relative_to(store)), chunk=None, what=str(error))


def _dictionary_faults(store: Path, quick: bool) -> Iterator[Fault]:
    path = dictionary_record(store)
    if path.exists():
        yield from _record_faults(store, None, path, quick)


def _described_faults(store: Path, quick: bool) -> Iterator[Fault]:
    """Faults of what decoder rows say; none of tables that are replaced meanwhile."""
    path = described_record(store)
    if path.exists():
        before = path.read_bytes()
        faults = list(_record_faults(store, None, path, quick))
        if path.read_bytes() == before:
            yield from faults


def _index_faults(store: Path, quick: bool) -> Iterator[Fault]:
    """Faults of the index; none of one that is made anew meanwhile."""
    for path in index_records(store):
        try:
            before = path.read_bytes()
            faults = list(_record_faults(store, None, path, quick))
            is_there = path.read_bytes() == before
        except FileNotFoundError:
            continue
        if is_there:
            yield from faults


def _segment_faults(store: Path, quick: bool) -> Iterator[Fault]:
    try:
        records = find_records(store)
    except FileNotFoundError:
        yield Fault(segment=None, object=COMMITS, chunk=None, what="the folder is missing: half-copied?")
        return
    for index, path in records.items():
        yield from _record_faults(store, index, path, quick)


def _exact_faults(store: Path, quick: bool) -> Iterator[Fault]:
    """Faults of the exact effects, each of the segment whose effects they are; none of what is deleted meanwhile."""
    folder = store / EXACT_FOLDER
    if not (folder / COMMITS).is_dir():
        return
    for index, path in find_records(folder).items():
        try:
            before = path.read_bytes()
            faults = list(_record_faults(folder, index, path, quick))
            is_there = path.read_bytes() == before
        except FileNotFoundError:
            continue
        if is_there:
            yield from (dataclasses.replace(fault, object=f"{EXACT_FOLDER}/{fault.object}") for fault in faults)


def _record_faults(store: Path, index: int | None, path: Path, quick: bool) -> Iterator[Fault]:
    name = str(path.relative_to(store))
    try:
        commit = read_record(path)
    except FormatError:
        raise
    except StoreError as error:
        yield Fault(segment=index, object=name, chunk=None, what=str(error))
        return
    if commit.facts.get("segment") != index:
        yield Fault(segment=index, object=name, chunk=None, what=f"is the record of segment {commit.facts['segment']}")
        return
    wrong = dict(missing_objects(store, commit))
    for key, what in wrong.items():
        yield Fault(segment=index, object=f"{commit.folder}/{key}", chunk=None, what=what)
    present = [record for record in commit.objects if record.key not in wrong]
    if quick:
        present = [record for record in present if record.key.endswith(METADATA)]
    damaged = dict(_checksum_faults(store / commit.folder, present))
    intact = [record.key for record in present if record.key not in damaged]
    wrong |= damaged
    for key, what in damaged.items():
        for chunk in _damaged_chunks(store / commit.folder, key, wrong) or [None]:
            yield Fault(segment=index, object=f"{commit.folder}/{key}", chunk=chunk, what=what)
    for key in intact:
        for chunk in _damaged_chunks(store / commit.folder, key, wrong):
            yield Fault(segment=index, object=f"{commit.folder}/{key}", chunk=chunk, what="does not decode")


def _checksum_faults(folder: Path, records: list[ObjectRecord]) -> Iterator[tuple[str, str]]:
    """Yield (key, what) of every object whose bytes are not the committed ones."""
    for record in records:
        try:
            got = describe(record.key, (folder / record.key).read_bytes())
        except OSError as error:
            yield record.key, f"cannot be read ({error})"
            continue
        if got.crc32c != record.crc32c:
            yield record.key, f"crc32c is {got.crc32c:08x}, committed was {record.crc32c:08x}"
        elif got != record:
            yield record.key, f"sha256 is {got.sha256}, committed was {record.sha256}: exchanged with another object"


def _damaged_chunks(folder: Path, key: str, wrong: dict[str, str]) -> list[int | None]:
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
