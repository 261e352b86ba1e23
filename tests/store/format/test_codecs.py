"""Precision and codecs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.codecs import chunk_codec, chunk_decoder, round_significand, strip_checksum
from gradsae_fast.store.format.layout import Array

DROPPING = (3, 7, 10)
LARGEST = np.finfo(np.float32).max


@settings(deadline=None)
@given(
    arrays(np.float32, 20, elements=st.floats(width=32, allow_subnormal=False, allow_nan=False, allow_infinity=False))
)
def test_rounding_keeps_the_promised_relative_error(values: Array) -> None:
    for bits in DROPPING:
        rounded = round_significand(values, bits).astype(np.float64)
        assert np.all(np.abs(rounded - values) <= np.abs(values.astype(np.float64)) * 2.0 ** -(bits + 1))
        assert np.all(np.signbit(rounded) == np.signbit(values))
        assert np.all(np.isfinite(rounded))


@pytest.mark.parametrize("bits", DROPPING)
def test_only_the_promised_bits_are_kept(bits: int) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.all(round_significand(values, bits).view(np.uint32) % (1 << (23 - bits)) == 0)


@pytest.mark.parametrize("bits", DROPPING)
def test_ties_go_to_even_and_carries_reach_the_exponent(bits: int) -> None:
    ulp = 2.0**-bits
    values = np.array([1 + ulp / 2, 1 + 3 * ulp / 2, 2 - ulp / 4, -(2 - ulp / 4)], np.float32)
    assert round_significand(values, bits).tolist() == [1.0, 1 + 2 * ulp, 2.0, -2.0]


@pytest.mark.parametrize("bits", [*DROPPING, 23])
def test_nan_infinity_and_signed_zero_are_kept_and_finite_stays_finite(bits: int) -> None:
    lowest_nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    values = np.concatenate([lowest_nan, np.array([np.inf, -np.inf, -0.0, LARGEST, -LARGEST], np.float32)])
    rounded = round_significand(values, bits)
    assert np.isnan(rounded[:2]).all()
    assert rounded[2:4].tolist() == [np.inf, -np.inf]
    assert rounded[4] == 0
    assert np.signbit(rounded[4])
    assert np.isfinite(rounded[5:]).all()
    assert rounded[5] == -rounded[6] > LARGEST * (1 - 2.0**-bits)


def test_23_bits_are_exact_and_leave_the_callers_array_alone() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32).view(np.float32)
    rounded = round_significand(values, 23)
    assert rounded.tobytes() == values.tobytes()
    assert not np.shares_memory(rounded, values)


def test_another_precision_is_refused() -> None:
    with pytest.raises(StoreError, match="precision_bits is 8; expected one of 3, 7, 10, 23"):
        round_significand(np.zeros(1, np.float32), 8)


@pytest.mark.parametrize("profile", ["compact", "portable"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64", "float32", "float64"])
def test_a_chunk_comes_back_bit_for_bit_and_crc32c_is_last(profile: str, dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 8 * 1000, np.uint8)
    values = bits.view(dtype)
    codec = chunk_codec(profile, values.dtype, len(values))
    assert codec.metadata[-1] == {"name": "crc32c"}
    data = codec.encode(values)
    assert chunk_decoder(codec.metadata, values.dtype, len(values))(data).tobytes() == values.tobytes()
    assert codec.encode(values) == data


def test_an_unknown_profile_or_chain_is_refused() -> None:
    with pytest.raises(StoreError, match="profile is 'zip'; expected one of compact, portable"):
        chunk_codec("zip", np.dtype("float32"), 1)
    with pytest.raises(StoreError, match=r"codec chain \['bytes'\]"):
        chunk_decoder([{"name": "bytes"}], np.dtype("float32"), 1)


def test_a_checksum_that_does_not_match_is_an_error() -> None:
    data = chunk_codec("compact", np.dtype("float32"), 3).encode(np.ones(3, np.float32))
    with pytest.raises(StoreError, match="checksum is"):
        strip_checksum(bytes([data[0] ^ 1]) + data[1:])
