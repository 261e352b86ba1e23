"""Files that survive a crash and a power cut on a local disk, and JSON documents that carry their own checksum.

zarr-python's local store never calls fsync; here every file and every directory entry is synced before anything
refers to it. Syncing many files from a few threads lets the file system settle them in one journal commit.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.codecs import checksum

TEMPORARY = ".tmp-"
_SYNC_THREADS = 8
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing under `path` into a StoreError with cause and remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(_explain(path, error)) from error


def _explain(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"disk full: {path} ({error.strerror}); committed segments stay valid; "
            "free space and run the same command again"
        )
    if error.errno in _READ_ONLY:
        return f"{path} is read-only for this user ({error}); expected a folder to write to: choose another one"
    return f"{path}: {error}; committed segments stay valid; mend the cause and run the same command again"


def write_new_file(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet; it is not synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, survive a power cut."""
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


def create_exclusive(path: Path, data: bytes) -> None:
    """Make `path` appear with all of `data`, durably, or not at all; the content is never seen half-written.

    Raises:
        FileExistsError: `path` exists.
        StoreError: the file system has no hard links.
    """
    temporary = path.with_name(f"{TEMPORARY}{token_hex(8)}")
    try:
        write_new_file(temporary, data)
        sync(temporary)
        try:
            os.link(temporary, path)
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


def replace_file(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably; a reader sees the old content or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{token_hex(8)}")
    try:
        write_new_file(temporary, data)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Create a directory and those above it, durably; it may exist already."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def probe_exclusive(folder: Path) -> None:
    """Check that creating the same key twice fails the second time: what makes commits safe.

    Raises:
        StoreError: the second one succeeded.
    """
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


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed writer left half-written in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Delete a folder of uncommitted objects as far as possible; what stays is invisible and goes at the next start."""
    shutil.rmtree(folder, ignore_errors=True)


def document_bytes(document: dict[str, Any]) -> bytes:
    """Write a JSON object with a `checksum` over all its other fields: crc32c of its bytes without that field.

    Raises:
        StoreError: a value that JSON does not have.
    """
    body = {key: value for key, value in document.items() if key != "checksum"}
    return _dump({**body, "checksum": f"{checksum(_dump(body)):08x}"})


def read_document(path: Path) -> dict[str, Any]:
    """Read back a JSON object written by `document_bytes`.

    Raises:
        StoreError: unreadable, or not byte for byte what was written.
        FileNotFoundError: there is none.
    """
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(document, dict) or document_bytes(document) != data:
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return document


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(document, sort_keys=True) + "\n").encode()
    except TypeError as error:
        raise StoreError(f"a value cannot be stored as JSON ({error}); expected text, numbers, lists, dicts") from error
