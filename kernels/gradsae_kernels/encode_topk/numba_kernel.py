"""Compiled loops of `encode_topk` on the CPU.

Letters: N tokens of a chunk, T latents of a tile, R = room for the candidates of a row.

A row keeps candidates in the order of latents and a bar: only what is above the bar can still be among the k largest.
When the room is full the k largest stay and the bar rises to the smallest of them, so that few latents of later tiles
become candidates. Equal latents that come later lose (strictly above the bar), which is the tie order of the contract.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gradsae_kernels.compiled import compiled

Array = npt.NDArray[Any]

BLOCK = 64
LANES = 16
LARGEST = np.finfo(np.float32).max
NOTHING = np.float32(-np.inf)  # nothing is below it
MAGNITUDE = np.int32(0x7FFFFFFF)


@compiled(inline="always")
def is_candidate(u: Any, bar: Any, low: Any) -> Any:
    """Whether u is outside of [low, bar], or NaN: a NaN must come through to be reported."""
    return (not (u <= bar)) | (u < low)


@compiled(inline="always")  # the loop inside vectorises only where its length is known
def any_candidate(row: Array, bias: Array, bar: Any, low: Any, first: int, stop: int) -> bool:
    """Whether one of the latents first:stop is a candidate (no early exit, so that it vectorises)."""
    count = np.int32(0)
    for t in range(first, stop):
        count += np.int32(is_candidate(row[t] + bias[t], bar, low))
    return bool(count > 0)


@compiled(inline="always")
def add_candidates(
    row: Array,
    bias: Array,
    bar: Any,
    low: Any,
    first: int,
    stop: int,
    base: int,
    latents: Array,
    values: Array,
    at: int,
) -> int:
    """Append the candidates of first:stop at `at`; return where the next one goes. Overwrites one entry past it."""
    for t in range(first, stop):
        u = row[t] + bias[t]
        latents[at] = base + t
        values[at] = u
        at += int(is_candidate(u, bar, low))
    return at


@compiled()
def kth_largest(bits: Array, count: int, k: int) -> Any:
    """Bits of the k-th largest magnitude among bits[:count], count >= k: bit by bit, by counting.

    Magnitudes of finite floats are ordered like their bits read as integers.
    """
    found = np.int32(0)
    for bit in range(30, -1, -1):
        trial = np.int32(found | np.int32(1 << bit))
        larger = np.int32(0)
        for entry in range(count):
            larger += np.int32((bits[entry] & MAGNITUDE) >= trial)
        if larger >= k:
            found = trial
    return found


@compiled()
def keep_largest(latents: Array, values: Array, bits: Array, count: int, k: int) -> Any:
    """Keep the k largest of `count` >= k candidates in their order, equal ones from the front; return the new bar."""
    least = kth_largest(bits, count, k)
    bar = np.float32(LARGEST)
    spare = k
    for entry in range(count):
        spare -= int((bits[entry] & MAGNITUDE) > least)
    at = 0
    for entry in range(count):
        magnitude = bits[entry] & MAGNITUDE
        equal = magnitude == least
        if magnitude > least or (equal and spare > 0):
            spare -= int(equal)
            bar = min(bar, abs(values[entry]))
            latents[at] = latents[entry]
            values[at] = values[entry]
            at += 1
    return bar


@compiled()
def collect_tile(
    start: int,
    stop: int,
    u_NT: Array,
    bias: Array,
    k: int,
    signed: bool,
    base: int,
    latents_NR: Array,
    values_NR: Array,
    bits_NR: Array,
    counts_N: Array,
    bars_N: Array,
) -> None:
    """Add the candidates of a tile to rows start:stop, where there is room for LANES more before every step.

    `bits_NR` is `values_NR` read as int32. NaN and Inf rank above every number, so that they stay to the end.
    """
    width = u_NT.shape[1]
    whole = width // BLOCK * BLOCK
    room = latents_NR.shape[1] - LANES
    for n in range(start, stop):
        row, latents, values, bits = u_NT[n], latents_NR[n], values_NR[n], bits_NR[n]
        count, bar = counts_N[n], bars_N[n]
        low = -bar if signed else NOTHING
        for block in range(0, whole, BLOCK):
            if any_candidate(row, bias, bar, low, block, block + BLOCK):
                for t in range(block, block + BLOCK, LANES):
                    if any_candidate(row, bias, bar, low, t, t + LANES):
                        count = add_candidates(row, bias, bar, low, t, t + LANES, base, latents, values, count)
                        if count >= room:
                            bar = keep_largest(latents, values, bits, count, k)
                            low = -bar if signed else NOTHING
                            count = k
        for t in range(whole, width, LANES):
            count = add_candidates(row, bias, bar, low, t, min(t + LANES, width), base, latents, values, count)
            if count >= room:
                bar = keep_largest(latents, values, bits, count, k)
                low = -bar if signed else NOTHING
                count = k
        counts_N[n], bars_N[n] = count, bar


@compiled()
def finish_rows(
    start: int, stop: int, k: int, latents_NR: Array, values_NR: Array, bits_NR: Array, counts_N: Array
) -> None:
    """Cut rows start:stop to the k largest candidates; a row that keeps NaN or Inf gets the count -1."""
    for n in range(start, stop):
        if counts_N[n] > k:
            keep_largest(latents_NR[n], values_NR[n], bits_NR[n], counts_N[n], k)
            counts_N[n] = k
        for entry in range(counts_N[n]):
            if not abs(values_NR[n, entry]) <= LARGEST:
                counts_N[n] = -1
