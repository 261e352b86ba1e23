"""Files that survive a crash and a power cut on a local disk, objects in a bucket, and JSON documents with a checksum.

zarr-python's local store never calls fsync; here every file and every directory entry is synced before anything
refers to it. Syncing many files from a few threads lets the file system settle them in one journal commit.

In a bucket a write that was acknowledged is durable and whole, so there is nothing to sync, no temporary file and no
folder to make; what must not be replaced is written with `If-None-Match: *`.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

from gradsae_fast.errors import BucketError, StoreError
from gradsae_fast.store.format.codecs import checksum
from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.links import read_plain
from gradsae_fast.store.places.place import Place

TEMPORARY = ".tmp-"
LONGEST_DOCUMENT = 1 << 26  # bytes of a JSON document
_MOST_VALUES = 1 << 21  # of a JSON document
_DEEPEST = 64  # objects and lists inside each other
_SYNC_THREADS = 8
_RACERS = 8
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def storage_errors(path: Place) -> Iterator[None]:
    """Turn what the operating system says about writing under `path` into a StoreError with cause and remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(_explain(path, error)) from error


def _explain(path: Place, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"disk full: {path} ({error.strerror}); committed segments stay valid; "
            "free space and run the same command again"
        )
    if error.errno in _READ_ONLY:
        return f"{path} is read-only for this user ({error}); expected a folder to write to: choose another one"
    return f"{path}: {error}; committed segments stay valid; mend the cause and run the same command again"


def write_new_file(path: Place, data: bytes) -> None:
    """Write a file that must not exist yet; it is not synced."""
    if isinstance(path, BucketPath):
        path.client.put(path.key, data)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def sync(path: Place) -> None:
    """Make a file's content, or a directory's entries, survive a power cut; in a bucket they do already."""
    if isinstance(path, BucketPath):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path]) -> None:
    """Sync many files or directories; the first error is raised."""
    listed = list(paths)
    shares = [listed[first::_SYNC_THREADS] for first in range(min(_SYNC_THREADS, len(listed)))]
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="gradsae-sync") as pool:
        for _ in pool.map(_sync_each, shares):
            pass


def _sync_each(paths: list[Path]) -> None:
    for path in paths:
        sync(path)


def create_exclusive(path: Place, data: bytes) -> None:
    """Make `path` appear with all of `data`, durably, or not at all; the content is never seen half-written.

    Raises:
        FileExistsError: `path` exists; in a bucket, with other content.
        StoreError: the file system has no hard links.
        BucketError: the object storage did not say, and does not show, what became of it.
    """
    if isinstance(path, BucketPath):
        path.client.create(path.key, data)
        return
    temporary = path.with_name(f"{TEMPORARY}{token_hex(8)}")
    try:
        write_new_file(temporary, data)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            sync(path.parent)  # who finds it there goes on with it, and who made it may have been killed
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreError(
                f"{path.parent} does not take hard links ({error.strerror}), which publish a segment exactly once; "
                "put the store on a local disk (ext4, XFS, APFS)"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def replace_file(path: Place, data: bytes) -> None:
    """Make `path` hold `data`, durably; a reader sees the old content or the new one."""
    if isinstance(path, BucketPath):
        path.client.put(path.key, data)
        return
    temporary = path.with_name(f"{TEMPORARY}{token_hex(8)}")
    try:
        write_new_file(temporary, data)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def move(source: Place, target: Place) -> None:
    """Give a file another name in the same store, in the place of any file there, durably.

    In a bucket it is written anew and then deleted: a crash between leaves both, a reader sees one or both.
    """
    if isinstance(source, BucketPath):
        replace_file(target, source.read_bytes())
        source.unlink(missing_ok=True)
        return
    source.replace(str(target))
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def make_folder(path: Place) -> None:
    """Create a directory and those above it, durably; it may exist already. A bucket has none.

    Nothing is put into one before its own name is sure; one that is empty may be left of a process killed before that.
    """
    if not isinstance(path, Path):
        return
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)
    elif _is_empty(path):
        with suppress(PermissionError):  # who may not read the folder above it did not make it
            sync(path.parent)


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as found:
        return next(found, None) is None


def settle_names(store: Place) -> None:
    """Make every name in a store sure, and in the folders right below it; for who goes on with what others left.

    A process may have been killed between making, renaming or removing a file and syncing its folder. What it did is
    seen, and a power cut undoes it: nothing may be deleted or taken as done because of it before this.
    """
    if isinstance(store, Path):
        sync_all([store, *(path for path in store.iterdir() if path.is_dir())])


def probe_exclusive(folder: Place) -> None:
    """Check that creating the same key twice fails the second time: what makes commits safe.

    Raises:
        StoreError: the second one succeeded.
    """
    if isinstance(folder, BucketPath):
        _probe_bucket(folder)
        return
    probe = folder / f"{TEMPORARY}probe-{token_hex(8)}"
    create_exclusive(probe, b"first")
    try:
        create_exclusive(probe, b"second")
    except FileExistsError:
        return
    finally:
        probe.unlink(missing_ok=True)
    raise StoreError(
        f"{folder}: its file system let the same name be created twice, so two writers could overwrite each other; "
        "put the store on a local disk (ext4, XFS, APFS)"
    )


def _probe_bucket(folder: BucketPath) -> None:
    """Create one key twice in turn, which storage that ignores conditions lets pass, and one eight times at once.

    The latter is let pass more than once by storage that looks first and writes then.
    """
    names = [f"{TEMPORARY}probe-{token_hex(8)}" for _ in range(2)]
    try:
        after = [_creates(folder / names[0], body) for body in (b"first", b"second")]
        with ThreadPoolExecutor(_RACERS) as pool:
            bodies = [f"racer {number}".encode() for number in range(_RACERS)]
            at_once = list(pool.map(lambda body: _creates(folder / names[1], body), bodies))
        won = dict(zip(bodies, at_once, strict=True)).get((folder / names[1]).read_bytes())
    finally:
        folder.client.delete([f"{folder.key}/{name}" for name in names])
    if after != [True, False] or at_once.count(True) != 1 or not won:
        raise StoreError(
            f"{folder}: its object storage let the same key be created twice (it ignores `If-None-Match: *`), so two "
            "writers could overwrite each other, and nothing else keeps a second one out of a bucket; use storage with "
            "conditional writes (AWS S3, Google Cloud Storage, R2, MinIO, Ceph, SeaweedFS) or a local disk"
        )


def _creates(path: BucketPath, data: bytes) -> bool:
    try:
        create_exclusive(path, data)
    except FileExistsError:
        return False
    return True


def remove_temporaries(folder: Place) -> None:
    """Delete what a killed writer left half-written in a folder; in a bucket nothing is, but another writer's probe."""
    if isinstance(folder, BucketPath):
        return
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def remove_tree(folder: Place) -> None:
    """Delete a folder of uncommitted objects as far as possible; what stays is invisible and goes at the next start."""
    if isinstance(folder, BucketPath):
        with suppress(BucketError):
            folder.client.delete([f"{folder.key}/{key}" for key in folder.lengths_below()])
        return
    shutil.rmtree(folder, ignore_errors=True)


def document_bytes(document: dict[str, Any]) -> bytes:
    """Write a JSON object with a `checksum` over all its other fields: crc32c of its bytes without that field.

    Raises:
        StoreError: a value that JSON does not have, or more of them than `read_document` takes.
    """
    _check_depth(document)
    body = {key: value for key, value in document.items() if key != "checksum"}
    data = _dump({**body, "checksum": f"{checksum(_dump(body)):08x}"})
    _check_extent(data)
    return data


def read_document(path: Place) -> dict[str, Any]:
    """Read back a JSON object written by `document_bytes`, of a bounded size: the store may come from anyone.

    Raises:
        StoreError: unreadable, larger than any writer makes one, or not byte for byte what was written.
        FileNotFoundError: there is none.
    """
    data = read_plain(path, LONGEST_DOCUMENT)
    try:
        _check_extent(data)
        document = json.loads(data)
        is_sound = isinstance(document, dict) and document_bytes(document) == data
    except (ValueError, RecursionError, MemoryError) as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({error or 'it is too large'})") from error
    except StoreError as error:
        raise StoreError(f"{path} is damaged or was not written by gradsae-fast: {error}") from error
    if not is_sound:
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return cast("dict[str, Any]", document)


def _check_extent(data: bytes) -> None:
    """Bound what a document takes in memory: some hundred bytes for each of its values."""
    num_values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if len(data) > LONGEST_DOCUMENT or num_values > _MOST_VALUES:
        raise StoreError(
            f"a document of {num_values:,} values or more than {LONGEST_DOCUMENT:,} bytes; expected at most "
            f"{_MOST_VALUES:,} values: where it is of a run of yours, use longer segments"
        )


def _check_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inner = (value for found in level for value in (found.values() if isinstance(found, dict) else found))
        level = [value for value in inner if isinstance(value, dict | list | tuple)]
        if not level:
            return
    raise StoreError(f"a document with objects or lists inside each other more than {_DEEPEST} deep")


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(document, sort_keys=True) + "\n").encode()
    except TypeError as error:
        raise StoreError(f"a value cannot be stored as JSON ({error}); expected text, numbers, lists, dicts") from error
