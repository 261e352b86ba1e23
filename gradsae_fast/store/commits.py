"""The commit protocol: a segment is visible when, and only when, its commit record exists.

    objects under segments/<k>-<attempt>/  →  fsync files, then directories  →  read back sizes and crc32c
    →  commits/<k>.json, created exclusively

An attempt's folder name is never used again, nothing is overwritten or appended, and a reader believes the record
alone; so a crash at any step leaves either the segment or nothing. `publish` knows keys and bytes, not what is in them:
the dictionary is published by the same steps.
"""

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import FormatError, StoreError
from gradsae_fast.stages import span
from gradsae_fast.store.codecs import checksum
from gradsae_fast.store.durable import (
    create_exclusive,
    document_bytes,
    make_folder,
    read_document,
    remove_tree,
    sync,
    sync_all,
    write_new_file,
)
from gradsae_fast.store.layout import FORMAT_VERSION, component

COMMITS = "commits"
SEGMENTS = "segments"
_RECORD_NAME = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """One object of a commit: key below its folder, and length in bytes, crc32c and sha256 of all its bytes.

    Why two: a shard carries crc32c sums inside, and the crc32c of bytes that end in their own crc32c does not depend on
    them. So it finds damage, but not that a shard was exchanged with another sound one of the same length.
    """

    key: str
    length: int
    crc32c: int
    sha256: str


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
        """Return the summary of a segment's record."""
        sides = {key.partition("/latents/negative/")[0] for key in (o.key for o in record.objects)}
        signed = tuple(site["name"] for site in record.facts["sites"] if f"sites/{component(site['name'])}" in sides)
        return cls(folder=record.folder, digest=record.digest, facts=record.facts, signed=signed)


def publish(
    store: Path, folder: str, record_path: Path, objects: Iterable[tuple[str, bytes]], facts: dict[str, Any]
) -> CommitRecord:
    """Write `objects` under `folder` (new, below `store`) and make them visible by creating `record_path`.

    Raises:
        StoreError: another writer published other content there, or the disk did not give back what was written.
        OSError: the disk is full, read-only or broken; the objects are removed as far as possible.
    """
    attempt = store / folder
    try:
        records = _write_objects(attempt, objects)
        _read_back(attempt, records)
        commit = CommitRecord(folder=folder, objects=records, facts=facts, writer=_writer())
        data = document_bytes(commit.to_document())
    except BaseException:
        remove_tree(attempt)
        raise
    # From here on the folder may be visible. Only who knows that it is not may remove it.
    try:
        create_exclusive(record_path, data)
    except FileExistsError:
        remove_tree(attempt)
        return _settle(record_path, commit)
    except OSError:
        if not record_path.exists():
            remove_tree(attempt)
        raise
    return commit


def publish_segment(
    store: Path, index: int, objects: Iterable[tuple[str, bytes]], facts: dict[str, Any]
) -> CommitRecord:
    """Publish segment `index`; see `publish`."""
    folder = f"{SEGMENTS}/{index:06d}-{token_hex(8)}"
    return publish(store, folder, record_path(store, index), objects, {"segment": index, **facts})


def record_path(store: Path, index: int) -> Path:
    """Return where the commit record of a segment lies."""
    return store / COMMITS / f"{index:06d}.json"


def find_records(store: Path) -> dict[int, Path]:
    """List the commit records of a store, by segment in ascending order, without reading them."""
    found = {
        int(match[1]): path for path in (store / COMMITS).iterdir() if (match := _RECORD_NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read_record(path: Path) -> CommitRecord:
    """Read a commit record.

    Raises:
        StoreError: damaged: not JSON, a checksum that does not match, or fields missing.
        FormatError: written by a newer release.
    """
    document = read_document(path)
    check_version(path, document)
    try:
        writer = document.pop("writer")
        objects = tuple(
            ObjectRecord(key=o["key"], length=o["length"], crc32c=int(o["crc32c"], 16), sha256=o["sha256"])
            for o in document.pop("objects")
        )
        digest, folder = document.pop("digest"), writer["folder"]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged: a field is missing or malformed ({error!r})") from error
    if digest != digest_of(objects):
        raise StoreError(f"{path} is damaged: its digest is not that of its objects")
    facts = {key: value for key, value in document.items() if key not in ("checksum", "format_version")}
    return CommitRecord(folder=folder, objects=objects, facts=facts, writer=writer)


def describe(key: str, data: bytes) -> ObjectRecord:
    """Return the record of an object with these bytes."""
    return ObjectRecord(key=key, length=len(data), crc32c=checksum(data), sha256=hashlib.sha256(data).hexdigest())


def digest_of(objects: Iterable[ObjectRecord]) -> str:
    """Return the sha256 of lines `<sha256> <key>`, one per object in order of key."""
    lines = (f"{record.sha256} {record.key}\n" for record in sorted(objects, key=lambda record: record.key))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_version(path: Path, document: dict[str, Any]) -> None:
    """Refuse a document of a newer format.

    Raises:
        FormatError: names both versions.
    """
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {version}; this release reads version {FORMAT_VERSION}: "
            "install the release of gradsae-fast that wrote it, or a newer one"
        )


def missing_objects(store: Path, commit: CommitRecord) -> list[tuple[str, str]]:
    """Return (key, what is wrong) of every listed object that is absent or of another length; costs one stat each."""
    folder = f"{store}/{commit.folder}"  # paths as text: a large store has many thousands, and opening it looks at each
    faults = []
    for record in commit.objects:
        try:
            length = os.stat(f"{folder}/{record.key}").st_size  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            faults.append((record.key, "is missing"))
            continue
        if length != record.length:
            faults.append((record.key, f"has {length} bytes, committed were {record.length}"))
    return faults


@span("write")
def _write_objects(attempt: Path, objects: Iterable[tuple[str, bytes]]) -> tuple[ObjectRecord, ...]:
    """Write and sync all objects; return their records in order of key."""
    attempt.mkdir()
    folders = {""}
    records = []
    for key, data in objects:
        parts = key.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                (attempt / folder).mkdir()
                folders.add(folder)
        write_new_file(attempt / key, data)
        records.append(describe(key, data))
    sync_all(attempt / record.key for record in records)
    sync_all(attempt / folder for folder in folders)
    sync(attempt.parent)
    return tuple(sorted(records, key=lambda record: record.key))


@span("read back")
def _read_back(attempt: Path, records: Iterable[ObjectRecord]) -> None:
    for record in records:
        if describe(record.key, (attempt / record.key).read_bytes()) != record:
            raise StoreError(
                f"{attempt / record.key}: the disk gave back other bytes than were written; check the disk, then run "
                "the same command again"
            )


def _settle(path: Path, commit: CommitRecord) -> CommitRecord:
    """Accept the record of another writer where it committed the same content."""
    other = read_record(path)
    if other.digest != commit.digest:
        raise StoreError(
            f"{path} was committed by another writer ({other.writer}) with other content; find out why two runs of one "
            "identity differ, then use another folder"
        )
    return other


def _writer() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"host": socket.gethostname(), "process": os.getpid(), "time": now}


def prepare(store: Path) -> None:
    """Create the folders that commits need."""
    make_folder(store / COMMITS)
    make_folder(store / SEGMENTS)


def remove_uncommitted(store: Path, commits: Iterable[CommitRecord]) -> None:
    """Delete the folders of attempts that no record names; only for the holder of the writer's lock."""
    committed = {commit.folder for commit in commits}
    for path in (store / SEGMENTS).iterdir():
        if f"{SEGMENTS}/{path.name}" not in committed:
            remove_tree(path)
