"""The commit protocol: a segment is visible when, and only when, its commit record exists.

    objects under segments/<k>-<attempt>/  →  fsync files, then directories  →  read back sizes and crc32c
    →  commits/<k>.json, created exclusively

An attempt's folder name is never used again, nothing is overwritten or appended, and a reader believes the record
alone; so a crash at any step leaves either the segment or nothing. `publish` knows keys and bytes, not what is in them:
the dictionary is published by the same steps.
"""

import os
import re
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import FormatError, StoreError
from gradsae_fast.stages import span
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import FORMAT_VERSION, component
from gradsae_fast.store.format.safe_key import checked_folder
from gradsae_fast.store.places.ahead import concurrently
from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.durable import (
    create_exclusive,
    document_bytes,
    make_folder,
    read_document,
    remove_tree,
    sync,
)
from gradsae_fast.store.places.links import read_pieces, refuse_links
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.objects import (
    ObjectRecord,
    describe_pieces,
    digest_of,
    missing_below,
    object_from,
    write_objects,
)

COMMITS = "commits"
SEGMENTS = "segments"
_RECORD_NAME = re.compile(r"(\d{6,})\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """What a commit record says.

    `facts` are segment, counts, sites, objectives, values and columns; `folder` and `writer` differ from attempt to
    attempt.
    """

    folder: str  # below the store
    objects: tuple[ObjectRecord, ...]
    facts: dict[str, Any]
    writer: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of keys and bytes of all objects: equal where two commits are byte-identical."""
        return digest_of(self.objects)

    @property
    def num_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(record.length for record in self.objects)

    def to_document(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            **self.facts,
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
            "objects": [
                {"key": o.key, "length": o.length, "crc32c": f"{o.crc32c:08x}", "sha256": o.sha256}
                for o in self.objects
            ],
            "writer": {**self.writer, "folder": self.folder},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSummary:
    """What opening a store needs to know of a segment: its record without the objects."""

    folder: str  # below the store
    digest: str
    facts: dict[str, Any]
    signed: tuple[str, ...]  # sites that have sums of each side

    @classmethod
    def of(cls, record: CommitRecord) -> "SegmentSummary":
        """Return the summary of a segment's record, whose facts were checked (see `effective`)."""
        sides = {key.partition("/latents/negative/")[0] for key in (o.key for o in record.objects)}
        signed = tuple(site["name"] for site in record.facts["sites"] if f"sites/{component(site['name'])}" in sides)
        return cls(folder=record.folder, digest=record.digest, facts=record.facts, signed=signed)


def publish(
    store: Place, folder: str, record_path: Place, objects: Iterable[tuple[str, bytes]], facts: dict[str, Any]
) -> CommitRecord:
    """Write `objects` under `folder` (new, below `store`) and make them visible by creating `record_path`.

    Raises:
        StoreError: another writer published other content there, or the disk did not give back what was written.
        OSError: the disk is full, read-only or broken; the objects are removed as far as possible.
    """
    attempt = store / folder
    commit = stage(store, folder, objects, facts)
    data = document_bytes(commit.to_document())
    # From here on the folder may be visible. Only who knows that it is not may remove it.
    try:
        create_exclusive(record_path, data)
    except FileExistsError:
        remove_tree(attempt)
        return settle(record_path, commit.digest)
    except OSError:
        if not record_path.exists():
            remove_tree(attempt)
        raise
    return commit


def stage(store: Place, folder: str, objects: Iterable[tuple[str, bytes]], facts: dict[str, Any]) -> CommitRecord:
    """Write `objects` under `folder` (new, below `store`), sync them and read them back; nothing is visible yet.

    Raises:
        StoreError: the disk did not give back what was written, or `facts` are not JSON.
        OSError: the disk is full, read-only or broken; the objects are removed as far as possible.
    """
    attempt = store / folder
    try:
        records = write_objects(attempt, objects)
        _read_back(attempt, records)
        commit = CommitRecord(folder=folder, objects=records, facts=facts, writer=writer_facts())
        document_bytes(commit.to_document())
    except BaseException:
        remove_tree(attempt)
        raise
    return commit


def publish_segment(
    store: Place, index: int, objects: Iterable[tuple[str, bytes]], facts: dict[str, Any]
) -> CommitRecord:
    """Publish segment `index`; see `publish`."""
    return publish(store, new_attempt(index), record_path(store, index), objects, {"segment": index, **facts})


def new_attempt(index: int) -> str:
    """Return a folder below the store for the objects of a segment; nobody else has it, now or ever."""
    return f"{SEGMENTS}/{index:06d}-{token_hex(8)}"


def record_path(store: Place, index: int) -> Place:
    """Return where the commit record of a segment lies."""
    return store / COMMITS / f"{index:06d}.json"


def find_records(store: Place) -> dict[int, Place]:
    """List the commit records of a store, by segment in ascending order, without reading them.

    Raises:
        FileNotFoundError: there are segments, but no folder of records.
    """
    if not (store / COMMITS).is_dir() and not (store / SEGMENTS).is_dir():
        return {}  # a store that was begun, and stopped before its first segment
    found = {
        int(match[1]): path for path in (store / COMMITS).iterdir() if (match := _RECORD_NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read_record(path: Place) -> CommitRecord:
    """Read a commit record.

    Raises:
        StoreError: damaged: not JSON, a checksum that does not match, or fields missing.
        FormatError: written by a newer release.
    """
    document = read_document(path)
    room = SEGMENTS if path.parent.name == COMMITS else path.parent.name
    return record_from(document, path, room)


def read_commits(store: Place) -> dict[int, CommitRecord]:
    """Read all commit records of a store, by segment, ascending.

    Raises:
        StoreError: one is damaged.
        FormatError: written by a newer release.
        FileNotFoundError: the folder is missing, or a record that was listed is gone.
    """
    found = find_records(store)
    return dict(zip(found, concurrently(store, read_record, found.values()), strict=True))


def record_from(document: dict[str, Any], path: Place, room: str) -> CommitRecord:
    """Return the record that a JSON object in the document at `path` says, its objects in a folder right below `room`.

    Raises:
        StoreError: fields are missing or malformed.
        FormatError: written by a newer release.
    """
    check_version(path, document)
    fields = Fields(document, path)
    objects = tuple(object_from(found, path) for found in fields.each("objects"))
    digest, writer = fields.text("digest"), fields.mapping("writer")
    folder = checked_folder(writer.get("folder"), room, path)
    if digest != digest_of(objects):
        raise StoreError(f"{path} is damaged: its digest is not that of its objects")
    said = ("checksum", "digest", "format_version", "objects", "writer")
    facts = {key: value for key, value in document.items() if key not in said}
    return CommitRecord(folder=folder, objects=objects, facts=facts, writer=writer)


def check_version(path: Place, document: dict[str, Any], known: Sequence[int] = (FORMAT_VERSION,)) -> None:
    """Refuse a document of another format version than those that are `known`.

    Raises:
        FormatError: names both versions.
    """
    version = document.get("format_version")
    if version not in known:
        raise FormatError(
            f"{path} has format version {version}; this release reads version {' and '.join(map(str, known))}: "
            "install the release of gradsae-fast that wrote it, or a newer one"
        )


def missing_objects(store: Place, commit: CommitRecord) -> list[tuple[str, str]]:
    """Return (key, what is wrong) of every listed object that is absent or of another length; see `missing_below`."""
    return missing_below(store / commit.folder, commit.objects)


@span("read back")
def _read_back(attempt: Place, records: Iterable[ObjectRecord]) -> None:
    if isinstance(attempt, BucketPath):  # what it received it has confirmed by a checksum of each
        for key, what in missing_below(attempt, records):
            raise StoreError(
                f"{attempt / key} {what}, right after it was written; check the object storage, then run the same "
                "command again"
            )
        return
    for record in records:
        if describe_pieces(record.key, read_pieces(attempt / record.key)) != record:
            raise StoreError(
                f"{attempt / record.key}: the disk gave back other bytes than were written; check the disk, then run "
                "the same command again"
            )


def settle(path: Place, digest: str) -> CommitRecord:
    """Return the record that another writer created, where its content is the one of this `digest`.

    Raises:
        StoreError: it is another one.
    """
    other = read_record(path)
    if other.digest != digest:
        raise StoreError(
            f"{path} was committed by another writer ({other.writer}) with other content; find out why two runs of one "
            "identity differ, then use another folder"
        )
    return other


def writer_facts() -> dict[str, Any]:
    """Return who writes, and when."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"host": socket.gethostname(), "process": os.getpid(), "time": now}


def prepare(store: Place) -> None:
    """Create the folders that commits need; the records that are there, or were removed, are so for good then.

    Raises:
        StoreError: something in `store` is a symbolic link.
    """
    make_folder(store)
    refuse_links(store)
    make_folder(store / COMMITS)
    make_folder(store / SEGMENTS)
    sync(store / COMMITS)


def remove_uncommitted(store: Place, commits: Iterable[CommitRecord]) -> None:
    """Delete the folders of attempts that no record names; only for the holder of the writer's lock."""
    committed = {commit.folder for commit in commits}
    _remove_each([path for path in (store / SEGMENTS).iterdir() if f"{SEGMENTS}/{path.name}" not in committed])


def remove_unnamed(record: Place) -> None:
    """Delete the folders beside the one record of a room that it does not name; for a process that is alone.

    A damaged record is for `repair`: then nothing is deleted.
    """
    if not record.parent.is_dir():
        return
    try:
        named = read_record(record).folder.rpartition("/")[2] if record.exists() else None
    except StoreError:
        return
    _remove_each([path for path in record.parent.iterdir() if path.is_dir() and path.name != named])


def _remove_each(folders: Sequence[Place]) -> None:
    """Delete folders that lie side by side; a power cut does not bring them back."""
    for folder in folders:
        remove_tree(folder)
    if folders:
        sync(folders[0].parent)
