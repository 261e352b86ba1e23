"""Columns that grow on disk: arrays appended to files, later copied piece by piece into a file of known header."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from gradsae_fast.records import Array

_PIECE = 1 << 20  # entries


class Spool:
    """One column in a scratch file."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self.dtype = np.dtype(dtype)
        self.length = 0
        path.touch()

    def append(self, values: Array) -> None:
        """Append entries, of any shape whose order is that of the file."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.length += values.size

    def pieces(self) -> Iterator[Array]:
        """Yield the entries in pieces that fit into memory."""
        with self._path.open("rb") as file:
            while len(piece := np.fromfile(file, self.dtype, _PIECE)):
                yield piece

    def copy_to(self, target: IO[bytes], dtype: np.dtype[Any] | None = None) -> None:
        """Write all entries, as another dtype where one is given, and delete the scratch file."""
        for piece in self.pieces():
            target.write(piece.astype(dtype or self.dtype, copy=False).tobytes())
        self._path.unlink()
