"""Arrays against zarr-python, in both directions."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ZarrUserWarning

from gradsae_fast.errors import StoreError
from gradsae_fast.store.arrays.stored import StoredArray, encode_array
from gradsae_fast.store.format.layout import Array, ArraySpec

SPEC = ArraySpec(name="x", dtype="float32", dims=("token",), meaning="numbers")
LENGTHS = [0, 1, 1000, 65_536, 65_537, 200_001]


def write_array(folder: Path, values: Array, profile: str = "compact") -> StoredArray:
    folder.mkdir(exist_ok=True)
    for key, data in encode_array(values, SPEC, profile).items():
        (folder / key).write_bytes(data)
    return StoredArray(folder, "segment 3, x")


def numbers(length: int, dtype: str = "float32") -> Array:
    return (np.random.default_rng(0).normal(size=length) * 1000).astype(dtype)


@pytest.mark.parametrize("profile", ["compact", "portable"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64", "float32", "float64"])
@pytest.mark.parametrize("length", [0, 1000, 65_537])
def test_zarr_python_reads_what_is_written(tmp_path: Path, length: int, dtype: str, profile: str) -> None:
    values = numbers(length, dtype.replace("uint", "int")).astype(dtype)
    stored = write_array(tmp_path / "x", values, profile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # pcodec is outside the specification, and zarr says so
        opened = zarr.open_array(tmp_path / "x", mode="r")
    assert opened.dtype == values.dtype
    assert opened.metadata.dimension_names == ("token",)  # type: ignore[union-attr]
    np.testing.assert_array_equal(opened[:], values)
    np.testing.assert_array_equal(stored.read(), values)
    assert stored.read().dtype == values.dtype


def test_what_zarr_python_writes_is_read(tmp_path: Path) -> None:
    values = numbers(1000)
    array = zarr.create_array(
        tmp_path / "x",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(64,),
        shards=(1024,),
        compressors=(BloscCodec(cname="zstd"), Crc32cCodec()),
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    array[:] = values
    np.testing.assert_array_equal(StoredArray(tmp_path / "x", "x").read(130, 999), values[130:999])


@pytest.mark.parametrize("length", LENGTHS)
def test_any_range_is_the_slice_of_the_whole(tmp_path: Path, length: int) -> None:
    values = numbers(length)
    stored = write_array(tmp_path / "x", values)
    edges = sorted({0, min(1, length), length // 2, min(65_536, length), max(0, length - 1), length})
    for start in edges:
        for stop in (edge for edge in edges if edge >= start):
            np.testing.assert_array_equal(stored.read(start, stop), values[start:stop])
    with pytest.raises(StoreError, match="another array speaks of"):
        stored.read(0, length + 1)


@pytest.mark.parametrize("dtype", [None, np.float64])
def test_ranges_are_the_slices_one_after_the_other(tmp_path: Path, dtype: type[np.generic] | None) -> None:
    values = numbers(200_001)
    stored = write_array(tmp_path / "x", values)
    starts, stops = [0, 7, 7, 49_990, 50_010, 149_000], [3, 7, 9, 50_010, 50_020, 200_001]
    read = stored.read_ranges(starts, stops, dtype)
    expected = np.concatenate([values[start:stop] for start, stop in zip(starts, stops, strict=True)])
    assert read.dtype == (dtype or values.dtype)
    np.testing.assert_array_equal(read, expected)
    assert len(stored.read_ranges([], [])) == 0
    with pytest.raises(StoreError, match="another array speaks of 5 to 200002"):
        stored.read_ranges([0, 5], [3, 200_002])


def test_ranges_read_no_chunk_that_holds_none_of_them(tmp_path: Path) -> None:
    values = numbers(200_001)  # four chunks
    write_array(tmp_path / "x", values)
    shard = tmp_path / "x" / "c.0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1  # inside the second chunk
    shard.write_bytes(data)
    stored = StoredArray(tmp_path / "x", "x")
    assert stored.damaged_chunks() == [1]
    np.testing.assert_array_equal(
        stored.read_ranges([5, 150_010], [9, 150_020]), [*values[5:9], *values[150_010:150_020]]
    )
    with pytest.raises(StoreError, match="chunk 1 is damaged"):
        stored.read_ranges([5, 60_000, 150_010], [9, 60_001, 150_020])


def test_all_zeros_are_stored_and_a_lost_shard_is_an_error_not_zeros(tmp_path: Path) -> None:
    stored = write_array(tmp_path / "x", np.zeros(10, np.float32))
    (tmp_path / "x" / "c.0").unlink()
    with pytest.raises(StoreError, match=r"segment 3, x: .*run `gradsae verify`"):
        stored.read()


def test_a_damaged_chunk_is_named_and_the_others_still_read(tmp_path: Path) -> None:
    values = numbers(200_001)
    stored = write_array(tmp_path / "x", values)
    shard = tmp_path / "x" / "c.0"
    data = bytearray(shard.read_bytes())
    data[len(data) * 3 // 8] ^= 16  # in the second of four chunks
    shard.write_bytes(data)
    assert stored.num_chunks == 4
    assert stored.damaged_chunks() == [1]
    with pytest.raises(StoreError, match="chunk 1 is damaged"):
        stored.read()
    np.testing.assert_array_equal(stored.read(150_100), values[150_100:])
