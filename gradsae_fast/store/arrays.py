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
from gradsae_fast.store.codecs import add_checksum, chunk_codec, chunk_decoder, strip_checksum
from gradsae_fast.store.layout import Array, ArraySpec

CHUNK_ELEMENTS = 1 << 16
METADATA = "zarr.json"
SHARD = "c.0"
_INDEX_ENTRY = struct.Struct("<QQ")
_CHECKSUM_BYTES = 4
_MISSING_CHUNK = 2**64 - 1


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

    def __init__(self, folder: Path | str, label: str) -> None:
        self._label = label
        self._shard = f"{folder}/{SHARD}"  # paths as text: a question opens hundreds of arrays
        try:
            with FileIO(f"{folder}/{METADATA}") as file:
                metadata = json.loads(file.readall())
            (self._length,) = metadata["shape"]
            self._dtype = np.dtype(metadata["data_type"])
            sharding = metadata["codecs"][0]["configuration"]
            (self._chunk,) = sharding["chunk_shape"]
            codecs = sharding["codecs"]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise self._damaged(f"its metadata cannot be read ({error})") from error
        self._decode = chunk_decoder(codecs, self._dtype)
        self._index: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return self._length

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
        pieces = list(self._pieces(start, stop))
        if len(pieces) != 1:
            return self.read_ranges([start], [stop])
        ((number, first, last),) = pieces
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
        pieces = [piece for start, stop in zip(starts, stops, strict=True) for piece in self._pieces(start, stop)]
        values = np.empty(sum(last - first for _, first, last in pieces), dtype or self._dtype)
        chunks = self._chunks(list(dict.fromkeys(number for number, _, _ in pieces)))
        at, held, chunk = 0, -1, values
        for number, first, last in pieces:
            if number != held:
                held, chunk = next(chunks)
            values[at : at + last - first] = chunk[first:last]
            at += last - first
        return values

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut a range at the borders of chunks: (chunk, first, last), counted from the chunk's first element."""
        if not 0 <= start <= stop <= self._length:
            raise self._damaged(f"it has {self._length} elements, another array speaks of {start} to {stop}")
        while start < stop:
            number, first = divmod(start, self._chunk)
            last = min(self._chunk, first + stop - start)
            yield number, first, last
            start += last - first

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
            for number in numbers:
                offset, length = index[number]
                yield number, self._decode_chunk(number, self._read_bytes(shard, offset, length))

    def _opened(self) -> FileIO:
        try:
            return FileIO(self._shard)
        except OSError as error:
            raise self._damaged(f"its shard cannot be read ({error})") from error

    def _read_bytes(self, shard: FileIO, offset: int, length: int) -> bytes:
        try:
            shard.seek(offset)
            return shard.read(length)
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

    def _read_index(self, shard: FileIO) -> list[tuple[int, int]]:
        """Read (offset, length) of every chunk from the end of the shard, the first time."""
        if self._index is None:
            size = self.num_chunks * _INDEX_ENTRY.size + _CHECKSUM_BYTES
            try:
                shard.seek(-size, 2)
                index = list(_INDEX_ENTRY.iter_unpack(strip_checksum(shard.read(size))))
            except (OSError, struct.error) as error:
                raise self._damaged(f"its shard index cannot be read ({error})") from error
            missing = [number for number, entry in enumerate(index) if _MISSING_CHUNK in entry]
            if len(index) != self.num_chunks or missing:
                raise self._damaged(f"its shard lacks chunks {missing}")
            self._index = index
        return self._index

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._label}: {what}; run `gradsae verify` on the store, then `gradsae repair`")
