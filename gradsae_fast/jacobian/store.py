"""A Jacobian store, written and read: committed segments of one run, and no torch.

The protocol of commits, durability and checksums is the score store's own; `layout.py` says what the segments hold.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsae_fast.errors import FormatError, IdentityError, StoreError
from gradsae_fast.jacobian.edges import SegmentJacobian
from gradsae_fast.jacobian.layout import segment_facts, segment_objects
from gradsae_fast.method import PRECISION_BITS
from gradsae_fast.records import Array
from gradsae_fast.store.arrays.stored import StoredArray
from gradsae_fast.store.arrays.strings import decode_strings
from gradsae_fast.store.format.codecs import PROFILES, check_choice
from gradsae_fast.store.places.durable import (
    TEMPORARY,
    create_exclusive,
    document_bytes,
    make_folder,
    read_document,
    remove_temporaries,
    storage_errors,
)
from gradsae_fast.store.places.lock import LOCK_FILE, WriterLock
from gradsae_fast.store.places.place import disk_path_of
from gradsae_fast.store.records.commits import (
    COMMITS,
    CommitRecord,
    missing_objects,
    prepare,
    publish_segment,
    read_commits,
    remove_uncommitted,
)

FORMAT, FORMAT_VERSION = "gradsae.jacobian", 1
RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class JacobianRun:
    """`run.json`: everything but `run` is compared when a run is resumed."""

    identity: dict[str, Any]
    num_segments: int
    precision_bits: int = 10
    profile: str = "compact"
    run: dict[str, Any]

    def compared(self) -> dict[str, Any]:
        """Return what a resumed run must share, as JSON values."""
        settings = {name: getattr(self, name) for name in ("num_segments", "precision_bits", "profile")}
        compared: dict[str, Any] = json.loads(document_bytes({"identity": self.identity, "settings": settings}))
        return compared


class JacobianWriter:
    """Writes the segments of one run; made by `open_writer`."""

    def __init__(self, path: Path, run: JacobianRun, committed: dict[int, CommitRecord]) -> None:
        self.path = path
        self._run = run
        self._committed = committed

    @property
    def committed(self) -> frozenset[int]:
        """Segments that are written; the others are still to do."""
        return frozenset(self._committed)

    def write(self, segment: SegmentJacobian) -> CommitRecord:
        """Write one segment: wholly and durably, or not at all. StoreError where it is there already."""
        if segment.index in self._committed or not 0 <= segment.index < self._run.num_segments:
            raise StoreError(f"segment {segment.index} is committed already, or outside the plan")
        objects = segment_objects(segment, self._run.precision_bits, self._run.profile)
        with storage_errors(self.path):
            commit = publish_segment(self.path, segment.index, objects, segment_facts(segment))
        self._committed[segment.index] = commit
        return commit


@contextmanager
def open_writer(path: str | Path, run: JacobianRun) -> Iterator[JacobianWriter]:
    """A store for writing, new or interrupted; what a killed writer left uncommitted is deleted.

    Raises IdentityError where the store belongs to another run, BusyError where another process writes to it, and
    StoreError for a folder that holds something else, damage, or a disk that is full or read-only.
    """
    check_choice("profile", run.profile, PROFILES)
    check_choice("precision_bits", run.precision_bits, PRECISION_BITS)
    store = disk_path_of(path)
    with storage_errors(store):
        make_folder(store)
        _refuse_strangers(store)
        lock = WriterLock(store)
    try:
        with storage_errors(store):
            _create_or_compare(store, run)
            committed = _recover(store)
        yield JacobianWriter(store, run, committed)
    finally:
        lock.release()


class StoredJacobian:
    """A committed segment, read array by array."""

    def __init__(self, store: Path, index: int, record: CommitRecord) -> None:
        self.index = index
        self.digest = record.digest
        self.counts: dict[str, int] = record.facts["counts"]
        self._folder = store / record.folder
        self._label = f"{store}, segment {index}"

    def array(self, name: str) -> StoredArray:
        """Return one of the arrays of `layout.py`, to be read whole or in ranges."""
        return StoredArray(self._folder / name, f"{self._label}, {name}")

    def read(self, name: str) -> Array:
        """Return all of an array."""
        return self.array(name).read()

    def strings(self, name: str) -> list[str]:
        """Return `key` or `text` of every document."""
        return decode_strings(self.read(f"documents/{name}/bytes"), self.read(f"documents/{name}/offsets"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JacobianStore:
    """The committed segments of a run; made by `open_jacobian`."""

    path: Path
    run: JacobianRun
    segments: tuple[StoredJacobian, ...]
    num_latents: tuple[int, int]  # C1 below, C2 above; zeros before the first commit

    @property
    def is_complete(self) -> bool:
        """Whether every segment of the plan is committed."""
        return len(self.segments) == self.run.num_segments


def open_jacobian(path: str | Path) -> JacobianStore:
    """Open a store for reading; it may be incomplete. StoreError where it is missing, of another kind, or damaged."""
    store = disk_path_of(path)
    run = _read_run(store)
    records = read_commits(store)
    for index, record in records.items():
        _check_present(store, index, record)
    widths = next((tuple(record.facts["num_latents"]) for record in records.values()), (0, 0))
    return JacobianStore(
        path=store,
        run=run,
        segments=tuple(StoredJacobian(store, index, record) for index, record in records.items()),
        num_latents=(int(widths[0]), int(widths[1])),
    )


def _read_run(store: Path) -> JacobianRun:
    try:
        document = read_document(store / RUN_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{store} is no Jacobian store; expected the --out of `gradsae jacobian extract`") from error
    if document.get("format") != FORMAT:
        raise StoreError(
            f"{store} has format {document.get('format')!r}, expected {FORMAT!r}; give a store of `gradsae jacobian "
            "extract`, or a new folder to make one"
        )
    if document.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{store} has format version {document.get('format_version')}, this release reads {FORMAT_VERSION}"
        )
    return JacobianRun(identity=document["identity"], run=document["run"], **document["settings"])


def _create_or_compare(store: Path, asked: JacobianRun) -> None:
    if not (store / RUN_FILE).exists():
        document = {**asked.compared(), "format": FORMAT, "format_version": FORMAT_VERSION, "run": asked.run}
        create_exclusive(store / RUN_FILE, document_bytes(document))
    stored, wanted = dict(_leaves(_read_run(store).compared())), dict(_leaves(asked.compared()))
    differing = [name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)]
    if differing:
        lines = "\n".join(f"  {n}: {stored.get(n, '(absent)')} -> {wanted.get(n, '(absent)')}" for n in differing)
        raise IdentityError(
            f"{store} belongs to another run; stored -> asked for:\n{lines}\n"
            "Run with the store's settings to go on, or choose another folder for a new run."
        )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, JSON text) of every leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif name != "checksum":
        yield name, json.dumps(value, sort_keys=True)


def _refuse_strangers(store: Path) -> None:
    if (store / RUN_FILE).exists():
        return
    known = {LOCK_FILE}
    strangers = [p.name for p in store.iterdir() if p.name not in known and not p.name.startswith(TEMPORARY)]
    if strangers:
        raise StoreError(
            f"{store} is not empty and no Jacobian store: it has {', '.join(sorted(strangers)[:5])}"
            f"{'; it looks half-copied' if COMMITS in strangers else ''}. Give a new folder, or a store to go on with."
        )


def _recover(store: Path) -> dict[int, CommitRecord]:
    prepare(store)
    for folder in (store, store / COMMITS):
        remove_temporaries(folder)
    records = read_commits(store)
    for index, record in records.items():
        _check_present(store, index, record)
    remove_uncommitted(store, records.values())
    return records


def _check_present(store: Path, index: int, record: CommitRecord) -> None:
    for key, what in missing_objects(store, record)[:1]:
        raise StoreError(
            f"{store}: segment {index} is damaged: its object {key} {what}; copy the store again, or delete "
            f"{COMMITS}/{index:06d}.json and run the same command again"
        )
