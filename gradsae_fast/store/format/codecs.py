"""How a chunk of numbers becomes bytes: two profiles of Zarr v3 codec chains, and the rounding that makes them short.

`compact` entropy-codes numbers with pcodec: short, but outside the Zarr v3 specification (zarr-python and zarrs read
it). `portable` uses codecs of the specification only. crc32c comes last in every chain: without it most single-bit
flips of a compressed chunk read back as silently wrong numbers.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd
from numcodecs.pcodec import PCodec
from pcodec import standalone as pcodec

from gradsae_fast.errors import StoreError
from gradsae_fast.method import PRECISION_BITS
from gradsae_fast.store.format.layout import Array

PROFILES = ("compact", "portable")
_PCODEC_LEVEL = 8
_ZSTD_LEVEL = 3
_BLOSC_LEVEL = 5
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_ZSTD_SHORTEST = 6  # bytes: magic, flags and one of length
_BLOSC_HEADER = struct.Struct("<4xIII")  # lengths unpacked, of a block, packed
_CHECKSUM = struct.Struct("<I")
_SIGNIFICAND_BITS = 23
_EXPONENT = np.uint32(0x7F800000)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkCodec:
    """A codec chain: its entry in the array's metadata, and the function that encodes one chunk, checksum included."""

    metadata: list[dict[str, Any]]
    encode: Callable[[Array], bytes]


def chunk_codec(profile: str, dtype: np.dtype[Any], chunk: int) -> ChunkCodec:
    """Return the codec chain of a profile for chunks of `chunk` numbers of `dtype`.

    Raises:
        StoreError: an unknown profile.
    """
    check_choice("profile", profile, PROFILES)
    if profile == "portable":
        names, codec = _blosc(dtype, chunk)
    elif dtype.itemsize == 1:  # pcodec has no 8-bit numbers; here these are text and masks
        names, codec = _zstd(), Zstd(level=_ZSTD_LEVEL)
    else:
        codec = PCodec(level=_PCODEC_LEVEL)
        names = [{"name": "numcodecs.pcodec", "configuration": _configuration(codec)}]
    stored = dtype.newbyteorder("<")

    def encode(values: Array) -> bytes:
        return add_checksum(bytes(codec.encode(np.ascontiguousarray(values, stored))))

    return ChunkCodec(metadata=[*names, {"name": "crc32c"}], encode=encode)


def chunk_decoder(metadata: list[dict[str, Any]], dtype: np.dtype[Any], chunk: int) -> Callable[[bytes], Array]:
    """Return the function that decodes one chunk of a chain that `chunk_codec` wrote, to `chunk` numbers of `dtype`.

    It allocates these numbers and no more, whatever the bytes ask for, and raises StoreError, ValueError or
    RuntimeError where its checksum does not match or they hold something else.

    Raises:
        StoreError: a chain that this release does not write.
    """
    names = [codec["name"] for codec in metadata]
    stored = dtype.newbyteorder("<")
    if names == ["numcodecs.pcodec", "crc32c"]:
        return lambda data: _numbers(strip_checksum(data), np.empty(chunk, stored))
    unpack = {"zstd": _unpack_zstd, "blosc": _unpack_blosc}
    if len(names) == 3 and names[0] == "bytes" and names[1] in unpack and names[2] == "crc32c":
        octets, size = unpack[names[1]], chunk * dtype.itemsize
        return lambda data: octets(strip_checksum(data), np.empty(size, np.uint8)).view(stored)
    raise StoreError(f"codec chain {names}: this release reads the chains of the profiles {', '.join(PROFILES)}")


def _numbers(data: bytes, into: Array) -> Array:
    try:
        progress = pcodec.simple_decompress_into(data, into)
    except (TypeError, RuntimeError, ValueError) as error:
        raise StoreError(f"pcodec: {error}") from error
    _check_length(progress.n_processed if progress.finished else None, len(into), "numbers")
    return into


def _unpack_zstd(data: bytes, into: Array) -> Array:
    _check_length(_zstd_length(data), len(into), "bytes")
    return np.asarray(Zstd().decode(data, into))


def _zstd_length(data: bytes) -> int | None:
    """Return the length that a frame says it unpacks to (RFC 8878, section 3.1.1.1), or None where it does not."""
    if data[:4] != _ZSTD_MAGIC or len(data) < _ZSTD_SHORTEST:
        return None
    flags = data[4]
    is_single = flags >> 5 & 1
    width = (is_single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - is_single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0) if width else None


def _unpack_blosc(data: bytes, into: Array) -> Array:
    if len(data) < _BLOSC_HEADER.size:
        raise StoreError(f"a blosc chunk has {len(data)} bytes; its header alone has {_BLOSC_HEADER.size}")
    length, block, packed = _BLOSC_HEADER.unpack_from(data)
    _check_length(length, len(into), "bytes")
    _check_length(packed, len(data), "bytes of packed data")
    if block > length:
        raise StoreError(f"a blosc block has {block} bytes of {length}")
    return np.asarray(Blosc().decode(data, into))


def _check_length(got: int | None, expected: int, what: str) -> None:
    if got != expected:
        raise StoreError(f"it holds {'another number of' if got is None else got} {what}; expected {expected}")


def _zstd() -> list[dict[str, Any]]:
    return [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}]


def _blosc(dtype: np.dtype[Any], chunk: int) -> tuple[list[dict[str, Any]], Blosc]:
    """Byte shuffle suits floats of one sign and range, bit shuffle suits integers.

    One block per chunk: with several, blosc's threads put them in the order in which they finish.
    """
    shuffle = ("shuffle", Blosc.SHUFFLE) if dtype.kind == "f" else ("bitshuffle", Blosc.BITSHUFFLE)
    block = chunk * dtype.itemsize
    configuration = {"typesize": dtype.itemsize, "cname": "zstd", "clevel": _BLOSC_LEVEL, "shuffle": shuffle[0]}
    octets = {"name": "bytes"} if dtype.itemsize == 1 else {"name": "bytes", "configuration": {"endian": "little"}}
    chain = [octets, {"name": "blosc", "configuration": {**configuration, "blocksize": block}}]
    return chain, Blosc(cname="zstd", clevel=_BLOSC_LEVEL, shuffle=shuffle[1], blocksize=block)


def _configuration(codec: PCodec) -> dict[str, Any]:
    return {key: value for key, value in codec.get_config().items() if key != "id"}


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of `data`, or of what has the checksum `before` with `data` after it."""
    return int(google_crc32c.extend(before, bytes(data)))


def add_checksum(payload: bytes) -> bytes:
    """Return `payload` with its crc32c at the end, as the codec `crc32c` of Zarr writes it."""
    return payload + _CHECKSUM.pack(checksum(payload))


def strip_checksum(data: bytes) -> bytes:
    """Return `data` without the crc32c at its end.

    Raises:
        StoreError: the checksum does not match.
    """
    payload, (expected,) = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    if checksum(payload) != expected:
        raise StoreError(f"checksum is {checksum(payload):08x}, stored {expected:08x}")
    return payload


def round_significand(values: Array, precision_bits: int) -> Array:
    """Round float32 to `precision_bits` bits of significand after the leading one; ties to even.

    The relative error of a normal number is at most 2^-(precision_bits + 1). NaN, Inf and signs are kept; a finite
    number stays finite: above the largest representable one it becomes that one, which keeps the bound.

    Raises:
        StoreError: a precision that is not one of 3, 7, 10, 23.
    """
    check_choice("precision_bits", precision_bits, PRECISION_BITS)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    drop = _SIGNIFICAND_BITS - precision_bits
    if drop == 0:
        return bits.view(np.float32).copy()
    keep = np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    half = np.uint32((1 << (drop - 1)) - 1)
    rounded = (bits + (half + ((bits >> np.uint32(drop)) & np.uint32(1)))) & keep
    finite = (bits & _EXPONENT) != _EXPONENT
    overflowed = finite & ((rounded & _EXPONENT) == _EXPONENT)
    rounded[overflowed] = bits[overflowed] & keep
    return np.where(finite, rounded, bits).view(np.float32)


def check_choice(what: str, got: object, expected: tuple[Any, ...]) -> None:
    """Refuse a setting that is not one of the known ones.

    Raises:
        StoreError: `got` is not in `expected`.
    """
    if got not in expected:
        raise StoreError(f"{what} is {got!r}; expected one of {', '.join(map(str, expected))}")
