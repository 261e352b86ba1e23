"""Waiting for a disk once in place of once a file: the system is told what will be read before any of it is.

On a disk only a hint (`posix_fadvise`, where the system has it). What is in memory already is not read again, and the
hint costs some microseconds a file. In a bucket the ends of objects are fetched, many at the same time, and kept by the
bucket's client for who reads them next: a request waits for the network some hundred times longer than for a disk.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.durable import LONGEST_DOCUMENT
from gradsae_fast.store.places.links import open_plain
from gradsae_fast.store.places.place import Place

T = TypeVar("T")
U = TypeVar("U")

_END_BYTES = 1 << 16
_BATCH = 256  # files: their ends are in memory a short time
_THREADS = 16


def read_heads(paths: Sequence[Place], size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the length of JSON documents in their order, and their first `size` bytes.

    Raises:
        OSError: one cannot be read.
    """
    for first in range(0, len(paths), _BATCH):
        batch = paths[first : first + _BATCH]
        if isinstance(batch[0], BucketPath):
            keys = [path.key for path in batch if isinstance(path, BucketPath)]
            whole = batch[0].client.get_many(keys, LONGEST_DOCUMENT)
            yield from ((len(data), data[:size]) for data in whole)
            continue
        with ExitStack() as stack:
            files = [stack.enter_context(FileIO(str(path), opener=open_plain)) for path in batch]
            for file in files:
                expect_range(file, 0, size, alone=True)
            yield from ((os.fstat(file.fileno()).st_size, file.read(size)) for file in files)


def announced(items: Iterable[T], announce: Callable[[T], None]) -> Iterator[T]:
    """Yield items in their order; each is announced before the one before it is worked on."""
    iterator = iter(items)
    for item in islice(iterator, 1):
        announce(item)
        for following in iterator:
            announce(following)
            yield item
            item = following
        yield item


def expect_range(file: FileIO, start: int, length: int, *, alone: bool = False) -> None:
    """Begin to read a range of an open file; `alone`: nothing after it will be read."""
    if hasattr(os, "posix_fadvise"):
        if alone:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)


def concurrently(where: Place, ask: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Ask a store about each item: in turn on a disk, about some at the same time in a bucket; answers in order."""
    if isinstance(where, Path):
        yield from map(ask, items)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(ask, items)


def expect(paths: Iterable[Place | str], *, whole: bool = False) -> None:
    """Begin to read files, or their last 64 KiB, which of most are all; one that is not there is passed over.

    In a bucket it is the last 64 KiB always.
    """
    for path in paths:
        if isinstance(path, BucketPath):
            path.client.expect(path.key)
        elif hasattr(os, "posix_fadvise"):
            _advise(path, whole)


def _advise(path: Path | str, whole: bool) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return  # whoever reads it says so
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        os.posix_fadvise(descriptor, 0 if whole else max(0, size - _END_BYTES), 0, os.POSIX_FADV_WILLNEED)
    except OSError:
        return  # a pipe
    finally:
        os.close(descriptor)
