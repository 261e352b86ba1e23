"""Waiting for a disk once in place of once a file: the system is told what will be read before any of it is.

Only a hint (`posix_fadvise`, where the system has it). What is in memory already is not read again, and the hint costs
some microseconds a file.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_END_BYTES = 1 << 18
_BATCH = 256  # files: their ends are in memory a short time


def read_files(paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield the bytes of files in their order.

    Raises:
        OSError: one cannot be read.
    """
    for first in range(0, len(paths), _BATCH):
        batch = paths[first : first + _BATCH]
        expect(batch)
        yield from (path.read_bytes() for path in batch)


def expect(paths: Iterable[Path | str]) -> None:
    """Begin to read the last 256 KiB of files, which of most are all; one that is not there is passed over."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # whoever reads it says so
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            os.posix_fadvise(descriptor, max(0, size - _END_BYTES), 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
