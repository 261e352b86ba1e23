"""A place in a bucket of object storage, with the part of `pathlib.Path` that the store uses.

A bucket has keys, no folders: a folder exists while an object lies below it, and making one does nothing. What changes
a bucket (create, replace, move, remove) is in `durable`, for disks and buckets alike.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import PurePosixPath
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.connection import connect
from gradsae_fast.store.places.object_client import ObjectClient


@total_ordering
class BucketPath:
    """A key, or what lies below it, in a bucket; made by `place.place_of`, and from another one by `/`.

    Every method that asks the storage raises BucketError where it does not answer or refuses.

    Attributes:
        client: the bucket.
        key: the key below it, without `/` at either end; empty for the bucket itself.
    """

    __slots__ = ("client", "key")

    def __init__(self, client: ObjectClient, key: str) -> None:
        self.client = client
        self.key = _joined(client.url, key)

    @classmethod
    def of(cls, scheme: str, bucket: str, key: str) -> "BucketPath":
        """Return the place of a key, with a client of its own for the bucket; see `connect` for errors."""
        return cls(connect(scheme, bucket), key)

    def __truediv__(self, key: str | PurePosixPath) -> "BucketPath":
        return BucketPath(self.client, f"{self.key}/{key}")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "BucketPath":
        """The folder above; the bucket's own is itself."""
        return BucketPath(self.client, self.key.rpartition("/")[0])

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> "BucketPath":
        """Return the place of another name in the same folder."""
        return self.parent / name

    def relative_to(self, folder: "BucketPath") -> PurePosixPath:
        """Return the key below a folder above it.

        Raises:
            ValueError: it does not lie below.
        """
        return PurePosixPath(str(self)).relative_to(PurePosixPath(str(folder)))

    def read_bytes(self, most: int | None = None) -> bytes:
        """Return the object's bytes, or its first `most` + 1 where it is longer.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.client.get(self.key, most)

    def read_pieces(self, size: int) -> Iterator[bytes]:
        """Yield the object's bytes in pieces of about `size`.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.client.get_pieces(self.key, size)

    def read_tail(self, size: int) -> bytes:
        """Return the object's last `size` bytes, or all of a shorter one.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.client.get_tail(self.key, size)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the object's bytes in ranges (offset, length).

        Raises:
            FileNotFoundError: there is none.
            OSError: it ends before a range does.
        """
        return self.client.get_ranges(self.key, ranges)

    def exists(self) -> bool:
        """Whether there is such an object, or one below it."""
        return self.length() is not None or self.is_dir()

    def length(self) -> int | None:
        """Return the object's length in bytes, or None where there is none."""
        return self.client.length(self.key) if self.key else None

    def is_dir(self) -> bool:
        """Whether there is an object below it."""
        return self.client.any_below(self.key)

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yield what lies right below it, in order of name; nothing for a folder that does not exist."""
        for key in self.client.entries(self.key):
            yield BucketPath(self.client, key)

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yield what lies right below it and has a name like `a*b`, without folders in the pattern."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object.

        Raises:
            FileNotFoundError: there is none, and that is not `missing_ok`.
        """
        if not missing_ok and self.length() is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))
        self.client.delete([self.key])

    def write_all(self, objects: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Write objects (key below it, bytes), some at the same time, and yield each; when it ends, all are written.

        Raises:
            StoreError: the storage gave back other bytes.
        """
        return self.client.put_many(self.key, objects)

    def lengths_below(self) -> dict[str, int]:
        """Return the length in bytes of every object below it, by the key below it."""
        cut = len(self.key) + 1 if self.key else 0
        return {key[cut:]: length for key, length in self.client.lengths(self.key).items()}

    def __str__(self) -> str:
        return f"{self.client.url}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, BucketPath) else NotImplemented

    def __lt__(self, other: "BucketPath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process makes a client of its own: credentials are never pickled.
        scheme, _, bucket = self.client.url.partition("://")
        return BucketPath.of, (scheme, bucket, self.key)


def _joined(url: str, key: str) -> str:
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise StoreError(f"{url}/{key} has `..` in it; expected a key below the bucket")
    return "/".join(parts)
