"""The objects of a commit, whatever is in them: written below a folder of their own, known by length and sums."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gradsae_fast.errors import StoreError
from gradsae_fast.stages import span
from gradsae_fast.store.format.claims import LONGEST_OBJECT
from gradsae_fast.store.format.codecs import checksum
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.safe_key import checked_key
from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.durable import sync, sync_all, write_new_file
from gradsae_fast.store.places.place import Place

_CRC32C = re.compile(r"[0-9a-f]{8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


def object_from(found: Fields, path: Place) -> ObjectRecord:
    """Return the record of an object that a JSON object in the document at `path` says.

    Raises:
        StoreError: fields are missing or malformed.
    """
    crc32c, sha256 = found.text("crc32c"), found.text("sha256")
    if not (_CRC32C.fullmatch(crc32c) and _SHA256.fullmatch(sha256)):
        raise StoreError(f"{path} is damaged: an object has the sums {crc32c!r:.80} and {sha256!r:.80}")
    key = checked_key(found.text("key"), "the key of an object", path)
    return ObjectRecord(key=key, length=found.count("length", LONGEST_OBJECT), crc32c=int(crc32c, 16), sha256=sha256)


def describe(key: str, data: bytes) -> ObjectRecord:
    """Return the record of an object with these bytes."""
    return ObjectRecord(key=key, length=len(data), crc32c=checksum(data), sha256=hashlib.sha256(data).hexdigest())


def describe_pieces(key: str, pieces: Iterable[bytes]) -> ObjectRecord:
    """Return the record of an object with these bytes, which need not all be in memory."""
    length, crc32c, sha256 = 0, 0, hashlib.sha256()
    for piece in pieces:
        length, crc32c = length + len(piece), checksum(piece, crc32c)
        sha256.update(piece)
    return ObjectRecord(key=key, length=length, crc32c=crc32c, sha256=sha256.hexdigest())


def digest_of(objects: Iterable[ObjectRecord]) -> str:
    """Return the sha256 of lines `<sha256> <key>`, one per object in order of key."""
    lines = (f"{record.sha256} {record.key}\n" for record in sorted(objects, key=lambda record: record.key))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def missing_below(folder: Place, records: Iterable[ObjectRecord]) -> list[tuple[str, str]]:
    """Return (key, what is wrong) of every object that is absent below a folder or of another length.

    It costs a stat each, or one listing in a bucket.
    """
    if isinstance(folder, BucketPath):
        return _missing_in_bucket(folder, records)
    root = str(folder)  # paths as text: a large store has many thousands, and opening it looks at each
    faults = []
    for record in records:
        try:
            found = os.lstat(f"{root}/{record.key}")
        except (FileNotFoundError, NotADirectoryError):
            faults.append((record.key, "is missing"))
            continue
        except OSError as error:
            faults.append((record.key, f"cannot be looked at ({error.strerror})"))
            continue
        length = found.st_size
        if not stat.S_ISREG(found.st_mode):
            faults.append((record.key, "is not a plain file"))
        elif length != record.length:
            faults.append((record.key, f"has {length} bytes, committed were {record.length}"))
    return faults


def _missing_in_bucket(folder: BucketPath, records: Iterable[ObjectRecord]) -> list[tuple[str, str]]:
    lengths = folder.lengths_below()
    faults = []
    for record in records:
        length = lengths.get(record.key)
        if length is None:
            faults.append((record.key, "is missing"))
        elif length != record.length:
            faults.append((record.key, f"has {length} bytes, committed were {record.length}"))
    return faults


def _bounded(attempt: Place, objects: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for key, data in objects:
        if len(data) > LONGEST_OBJECT:
            raise StoreError(
                f"{attempt / key} would have {len(data):,} bytes; expected at most {LONGEST_OBJECT:,}, as no reader "
                "takes more: split long documents"
            )
        yield key, data


@span("write")
def write_objects(attempt: Place, objects: Iterable[tuple[str, bytes]]) -> tuple[ObjectRecord, ...]:
    """Write and sync all objects below `attempt`, which must not exist yet; return their records in order of key.

    Raises:
        StoreError: one is longer than any reader takes.
        OSError: the disk is full, read-only or broken.
    """
    if isinstance(attempt, BucketPath):
        written = (describe(key, data) for key, data in attempt.write_all(_bounded(attempt, objects)))
        return tuple(sorted(written, key=lambda record: record.key))
    attempt.mkdir()
    folders = {""}
    records = []
    for key, data in _bounded(attempt, objects):
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
