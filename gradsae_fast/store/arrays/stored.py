"""One Zarr array at a time, one-dimensional and in one shard: its objects from its values, and any range of it back.

Written and read straight through the shard's index (codec `sharding_indexed` of the Zarr v3 specification), not through
zarr-python: a segment is some sixty small arrays and a query touches a few chunks of many, and zarr-python costs
milliseconds an array where this costs some tens of microseconds. It also returns the fill value for a chunk that is
missing; here that is an error. zarr-python is the oracle of the tests, in both directions.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.stages import span
from gradsae_fast.store.arrays.metadata import CHUNK_ELEMENTS, LONGEST_METADATA, parse_metadata
from gradsae_fast.store.format.codecs import add_checksum, chunk_codec, strip_checksum
from gradsae_fast.store.format.layout import Array, ArraySpec
from gradsae_fast.store.places.ahead import expect_range
from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.links import open_plain

METADATA = "zarr.json"
SHARD = "c.0"
_INDEX_ENTRY = struct.Struct("<QQ")
_CHECKSUM_BYTES = 4
_MISSING_CHUNK = 2**64 - 1
_BELIEVED = 1 << 22  # elements of one range; for more, the shard is asked first
_MOST_BYTES = 1 << 34  # that one read takes: the longest array that a segment may have
_RANGES = 64  # chunks of a bucket's shard in memory at once


@span("compress")
def encode_array(values: Array, spec: ArraySpec, profile: str) -> dict[str, bytes]:
    """Return the objects of a one-dimensional array: its metadata, and its one shard unless it is empty.

    Chunks are of equal length, at most 64 Ki elements: shorter ones cost readers more overhead than they save.
    """
    num_chunks = max(1, -(-len(values) // CHUNK_ELEMENTS))
    chunk = max(1, -(-len(values) // num_chunks))
    codec = chunk_codec(profile, values.dtype, chunk)
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [len(values)],
        "data_type": values.dtype.name,
        "chunk_grid": _named("regular", chunk_shape=[chunk * num_chunks]),
        "chunk_key_encoding": _named("default", separator="."),
        "fill_value": 0,
        "codecs": [_sharding(chunk, codec.metadata)],
        "attributes": {"meaning": spec.meaning},
        "dimension_names": list(spec.dims),
    }
    objects = {METADATA: _document(metadata)}
    if len(values):
        padded = np.zeros(chunk * num_chunks, values.dtype)
        padded[: len(values)] = values
        objects[SHARD] = _shard([codec.encode(part) for part in np.split(padded, num_chunks)])
    return objects


def encode_group(attributes: dict[str, Any]) -> bytes:
    """Return the metadata object of a group."""
    return _document({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _sharding(chunk: int, codecs: list[dict[str, Any]]) -> dict[str, Any]:
    index_codecs = [_named("bytes", endian="little"), {"name": "crc32c"}]
    return _named(
        "sharding_indexed", chunk_shape=[chunk], codecs=codecs, index_codecs=index_codecs, index_location="end"
    )


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def _document(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata).encode()


def _shard(chunks: list[bytes]) -> bytes:
    """Join encoded chunks, with the index of (offset, length) and its checksum at the end."""
    offsets = np.cumsum([0, *map(len, chunks)]).tolist()
    index = b"".join(_INDEX_ENTRY.pack(offset, len(data)) for offset, data in zip(offsets, chunks, strict=False))
    return b"".join(chunks) + add_checksum(index)


class StoredArray:
    """A stored array: metadata and shard index read once, then any range of elements.

    Args:
        folder: the array's folder.
        label: what errors call it, with segment and path.
    """

    def __init__(self, folder: Path | BucketPath | str, label: str) -> None:
        self._label = label
        self._folder = folder
        try:
            metadata = parse_metadata(_read_metadata(folder))
        except OSError as error:
            raise self._damaged(f"its metadata cannot be read ({error})") from error
        self._length, self._dtype, self._chunk = metadata.length, metadata.dtype, metadata.chunk
        self._longest, self._decode = metadata.longest_chunk, metadata.decode
        self._index: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""
        return self._dtype

    @property
    def num_chunks(self) -> int:
        """Number of inner chunks; 0 for an empty array."""
        return -(-self._length // self._chunk)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return elements `start` to `stop` (default: the end), reading only the chunks that hold them.

        Raises:
            StoreError: a missing object, a checksum that does not match, bytes that do not decode, or a range that is
                not inside, as ranges come from other arrays.
        """
        stop = self._length if stop is None else stop
        if not start < stop <= self._length or start // self._chunk != (stop - 1) // self._chunk:
            return self.read_ranges([start], [stop])
        ((number, first, last),) = self._pieces(start, stop)
        ((_, values),) = self._chunks([number])
        return values[first:last]

    def read_ranges(self, starts: Sequence[int], stops: Sequence[int], dtype: type[np.generic] | None = None) -> Array:
        """Return the elements of ranges one after the other, decoding only the chunks that hold them, each once.

        Args:
            starts, stops: borders of the ranges, which ascend and do not overlap.
            dtype: what to return them as; None: as they are stored.

        Raises:
            StoreError: as `read`.
        """
        self._check_size(starts, stops)
        pieces = [piece for start, stop in zip(starts, stops, strict=True) for piece in self._pieces(start, stop)]
        values = self._allocated(sum(last - first for _, first, last in pieces), dtype or self._dtype)
        chunks = self._chunks(list(dict.fromkeys(number for number, _, _ in pieces)))
        at, held, chunk = 0, -1, values
        for number, first, last in pieces:
            if number != held:
                held, chunk = next(chunks)
            values[at : at + last - first] = chunk[first:last]
            at += last - first
        return values

    def expect(self, start: int, stop: int) -> None:
        """Begin to read the chunks that hold a range of elements; see `ahead`."""
        numbers = [number for number, _, _ in self._pieces(start, stop)]
        if numbers:
            with self._opened() as shard:
                index = self._read_index(shard)
                (begin, _), (last, length) = index[numbers[0]], index[numbers[-1]]
                shard.expect(begin, last + length - begin)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut a range at the borders of chunks: (chunk, first, last), counted from the chunk's first element."""
        if not 0 <= start <= stop <= self._length:
            raise self._damaged(f"it has {self._length} elements, another array speaks of {start} to {stop}")
        while start < stop:
            number, first = divmod(start, self._chunk)
            last = min(self._chunk, first + stop - start)
            yield number, first, last
            start += last - first

    def _check_size(self, starts: Sequence[int], stops: Sequence[int]) -> None:
        """Before much memory is asked for, see that the shard has all the chunks that the metadata speaks of."""
        if self._index is None and any(stop - start > _BELIEVED for start, stop in zip(starts, stops, strict=True)):
            with self._opened() as shard:
                self._read_index(shard)

    def _allocated(self, length: int, dtype: np.dtype[Any] | type[np.generic]) -> Array:
        size = length * np.dtype(dtype).itemsize
        if size > _MOST_BYTES:
            raise self._damaged(f"{length} of its elements take {size} bytes; expected at most {_MOST_BYTES} at once")
        try:
            return np.empty(length, dtype)
        except MemoryError as error:
            raise self._damaged(f"{length} of its elements take {size} bytes, more memory than there is") from error

    def damaged_chunks(self) -> list[int]:
        """Return the numbers of the chunks that do not decode to their full length.

        Raises:
            StoreError: the shard's index cannot be read, so no chunk can be told from another.
        """
        if not self._length:
            return []
        with self._opened() as shard:
            self._read_index(shard)
        return [number for number in range(self.num_chunks) if not self._decodes(number)]

    def _decodes(self, number: int) -> bool:
        try:
            list(self._chunks([number]))
        except StoreError:
            return False
        return True

    def _chunks(self, numbers: list[int]) -> Iterator[tuple[int, Array]]:
        """Yield chunks by their numbers; the shard is opened once."""
        if not numbers:
            return
        with self._opened() as shard:
            index = self._read_index(shard)
            parts = self._read_parts(shard, [index[number] for number in numbers])
            for number, data in zip(numbers, parts, strict=True):
                yield number, self._decode_chunk(number, data)

    def _opened(self) -> "_FileShard | _BucketShard":
        try:
            # Paths as text: a question opens hundreds of arrays.
            if isinstance(self._folder, BucketPath):
                return _BucketShard(self._folder / SHARD)
            return _FileShard(f"{self._folder}/{SHARD}", opener=open_plain)
        except OSError as error:
            raise self._damaged(f"its shard cannot be read ({error})") from error

    def _read_parts(self, shard: "_FileShard | _BucketShard", ranges: list[tuple[int, int]]) -> Iterator[bytes]:
        try:
            yield from shard.read_ranges(ranges)
        except OSError as error:
            raise self._damaged(f"its shard cannot be read ({error})") from error

    def _decode_chunk(self, number: int, data: bytes) -> Array:
        try:
            values = self._decode(data)
        except (ValueError, RuntimeError, StoreError, struct.error) as error:
            raise self._damaged(f"chunk {number} is damaged ({error})") from error
        if len(values) != self._chunk:
            raise self._damaged(f"chunk {number} has {len(values)} elements, expected {self._chunk}")
        return values

    def _read_index(self, shard: "_FileShard | _BucketShard") -> list[tuple[int, int]]:
        """Read (offset, length) of every chunk from the end of the shard, the first time."""
        if self._index is None:
            size = self.num_chunks * _INDEX_ENTRY.size + _CHECKSUM_BYTES
            try:
                index = list(_INDEX_ENTRY.iter_unpack(strip_checksum(shard.read_tail(size))))
            except (OSError, struct.error) as error:
                raise self._damaged(f"its shard index cannot be read ({error})") from error
            missing = [number for number, entry in enumerate(index) if _MISSING_CHUNK in entry]
            if len(index) != self.num_chunks or missing:
                raise self._damaged(f"its shard lacks chunks {missing[:10]}")
            self._check_index(index)
            self._index = index
        return self._index

    def _check_index(self, index: list[tuple[int, int]]) -> None:
        """Chunks lie end to end, each once, so that a short shard cannot be made to stand for a long array."""
        end = 0
        for number, (offset, length) in enumerate(index):
            if offset != end or length > self._longest:
                what = f"its shard has chunk {number} at {offset}, {length} bytes long"
                raise self._damaged(f"{what}; expected it at {end}, with at most {self._longest} bytes")
            end += length

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._label}: {what}; run `gradsae verify` on the store, then `gradsae repair`")


def _read_metadata(folder: Path | BucketPath | str) -> bytes:
    if isinstance(folder, BucketPath):
        return (folder / METADATA).read_bytes(LONGEST_METADATA)
    with FileIO(f"{folder}/{METADATA}", opener=open_plain) as file:
        return file.read(LONGEST_METADATA + 1)


class _FileShard(FileIO):
    """A shard on a disk, read in order."""

    def expect(self, offset: int, length: int) -> None:
        expect_range(self, offset, length)

    def read_tail(self, size: int) -> bytes:
        self.seek(-size, 2)
        return self.read(size)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for offset, length in ranges:
            self.seek(offset)
            yield self.read(length)


class _BucketShard:
    """A shard in a bucket: neighbouring chunks come in one request, others at the same time."""

    def __init__(self, place: BucketPath) -> None:
        self._place = place

    def __enter__(self) -> "_BucketShard":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""

    def expect(self, offset: int, length: int) -> None:
        """Nothing: neighbouring chunks come in one request anyway."""

    def read_tail(self, size: int) -> bytes:
        return self._place.read_tail(size)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for first in range(0, len(ranges), _RANGES):
            yield from self._place.read_ranges(ranges[first : first + _RANGES])
