"""Files opened as bytes, decompressed by their suffix. A file that ends too early is an error, never a shorter file."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from gradsae_fast.errors import CorpusError

SUFFIXES = (".gz", ".zst")
_CHUNK = 1 << 16
_WINDOW = 1 << 31  # what `zstd --long=31` writes


@contextmanager
def open_bytes(path: Path, name: str) -> Iterator[BinaryIO]:
    """The content of `path`, decompressed. CorpusError naming the file as `name` where it is damaged or unreadable."""
    try:
        with path.open("rb") as raw:
            yield _decompressed(raw, path.suffix.lower())
    except FileNotFoundError as error:
        raise CorpusError(f"{name}: no such file: {path}; check the path") from error
    except EOFError as error:
        raise CorpusError(f"{name}: got a truncated file ({error}); copy or download it again") from error
    except (zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise CorpusError(f"{name}: got damaged {path.suffix} data ({error}); copy or download it again") from error
    except OSError as error:
        raise CorpusError(f"{name}: the file cannot be read: {error}") from error


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFrames(raw), _CHUNK))
    return raw


class _ZstdFrames(io.RawIOBase):
    """All frames of a zstd file, one after the other.

    zstandard's own stream reader takes the end of a file inside a frame for the end of the data: a truncated file
    would silently be a shorter corpus.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._frame: Any = None  # the frame that is being read
        self._ahead = b""  # compressed bytes after the last frame
        self._ready = memoryview(b"")  # decompressed bytes that nobody took yet

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._ahead or self._raw.read(_CHUNK)
            if not chunk:
                break
            self._feed(chunk)
        if not self._ready and self._frame is not None:
            raise EOFError("it ends inside a zstd frame")
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def _feed(self, chunk: bytes) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._ready = memoryview(self._frame.decompress(chunk))
        self._ahead = b""
        if self._frame.eof:
            self._ahead = self._frame.unused_data
            self._frame = None
