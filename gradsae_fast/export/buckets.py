"""Records sorted by latent on disk: thrown into files by range of latents, then read back file by file and sorted.

Records come in token order. A file holds one latent, and needs no sorting, or several that together fit into memory.
Letters: C latents, B files, Z records of a run.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gradsae_fast.records import Array


class Buckets:
    """Files of records by range of latents; `dtype` is a record with a field `latent`."""

    def __init__(self, folder: Path, count_C: Array, dtype: np.dtype[np.void], limit: int) -> None:
        self._folder = folder
        self._dtype = dtype
        self._limit = limit
        self._bucket_C = spread(count_C, limit)

    def add(self, record_Z: Array) -> None:
        """Append records to their files."""
        bucket_Z = self._bucket_C[record_Z["latent"]]
        order_Z = stable_order(bucket_Z)
        found, first = np.unique(bucket_Z[order_Z], return_index=True)
        for bucket, part in zip(found.tolist(), np.split(record_Z.take(order_Z), first)[1:], strict=True):
            with self._path(bucket).open("ab") as file:
                file.write(part.tobytes())

    def read(self) -> Iterator[Array]:
        """Yield all records in order of latent, and of each latent in the order in which they came."""
        for bucket in range(int(self._bucket_C[-1]) + 1):
            path = self._path(bucket)
            if not path.exists():
                continue
            several = np.count_nonzero(self._bucket_C == bucket) > 1
            if several:
                records = np.fromfile(path, self._dtype)
                yield records.take(stable_order(records["latent"]))
            else:
                yield from self._read_pieces(path)
            path.unlink()

    def _read_pieces(self, path: Path) -> Iterator[Array]:
        with path.open("rb") as file:
            while len(records := np.fromfile(file, self._dtype, self._limit)):
                yield records

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket}"


def stable_order(number_Z: Array) -> Array:
    """Return the order that sorts integers, equal ones as they came; numbers of 16 bits take numpy's radix sort."""
    above_Z = number_Z - number_Z.min(initial=0)
    narrow = above_Z.max(initial=0) < 1 << 16
    return np.argsort(above_Z.astype(np.uint16) if narrow else above_Z, kind="stable")


def spread(count_C: Array, limit: int) -> Array:
    """Return the number of the file of each latent: neighbours share one while they have `limit` records or fewer.

    A latent with more lies alone, beside no other one, however silent.

    >>> spread(np.array([3, 4, 9, 0, 1]), 8)
    array([0, 0, 1, 2, 2])
    """
    bucket_C, bucket, held = np.zeros(len(count_C), np.int64), 0, 0
    for latent, count in enumerate(count_C.tolist()):
        if latent and held + count > limit:
            bucket, held = bucket + 1, 0
        bucket_C[latent] = bucket
        held += count
    return bucket_C
