"""Where a store lies: a folder on a disk, or a prefix in a bucket of object storage.

`place_of` is called at every door; behind it a place is a `pathlib.Path` or a `BucketPath`, which offers the same
methods as far as the store uses them. What a disk and a bucket do differently is in `durable`, `lock`, `arrays` and
`ahead`.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.bucket import BucketPath

Place: TypeAlias = Path | BucketPath
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_SCHEMES = ("s3", "memory")


def place_of(where: "str | os.PathLike[str] | Place") -> Place:
    """Return the place that a text or path names.

    Args:
        where: `s3://bucket/prefix`; `memory://name/prefix`, which ends with the process; anything else is a path.

    Raises:
        StoreError: another scheme, an address with credentials or a query in it (neither is repeated), or obstore is
            not installed.
    """
    if isinstance(where, BucketPath):
        return where
    text = os.fspath(where)
    address = _URL.match(text)
    if address is None:
        return Path(where)
    scheme, slash, rest = address.groups()
    if not slash:
        if scheme not in _SCHEMES:
            return Path(text)
        raise StoreError(f"a {scheme}:// address was made a Path, which eats one of its slashes; give it as text")
    if scheme not in _SCHEMES:
        raise StoreError(f"a store cannot lie at {scheme}://; expected s3://bucket/prefix or a path")
    bucket, _, key = rest.partition("/")
    _check(scheme, bucket, key)
    return BucketPath.of(scheme, bucket, key)


def disk_path_of(where: "str | os.PathLike[str]") -> Path:
    """Return the path that a text names, for what cannot lie in a bucket.

    Raises:
        StoreError: an address of object storage.
    """
    if "://" in str(where):
        raise StoreError("this cannot lie in object storage; expected a path on a disk")
    return Path(where)


def key_below(path: Place, folder: Place) -> str:
    """Return where a place lies below a folder, as text.

    Raises:
        ValueError: it does not lie below.
    """
    return PurePosixPath(str(path)).relative_to(PurePosixPath(str(folder))).as_posix()


def entries(folder: Place, pattern: str = "*") -> list[Place]:
    """Return what lies right below a folder, by name.

    Raises:
        FileNotFoundError: there is no such folder; in a bucket there is none without entries.
    """
    found: list[Place] = [*(folder.iterdir() if pattern == "*" else folder.glob(pattern))]
    return sorted(found, key=lambda path: path.name)


def below(folder: Place, key: str) -> BucketPath | str:
    """Return what lies at `key` below a folder, on a disk as text: a question opens hundreds of arrays."""
    return folder / key if isinstance(folder, BucketPath) else f"{folder}/{key}"


def _check(scheme: str, bucket: str, key: str) -> None:
    if "@" in bucket or ":" in bucket:
        raise StoreError(
            f"the {scheme}:// address has credentials in it (not repeated here), which would end up in logs; expected "
            f"{scheme}://bucket/prefix: put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if "?" in f"{bucket}{key}" or "#" in f"{bucket}{key}":
        raise StoreError(
            f"the {scheme}:// address has a query or fragment in it (not repeated here); expected {scheme}://bucket/prefix"
        )
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(f"the {scheme}:// address has no valid bucket name; expected {scheme}://bucket/prefix")
