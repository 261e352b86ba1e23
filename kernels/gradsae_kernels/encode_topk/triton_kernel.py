"""Kernels that choose by rank inside a row: the bar of a sample, and the k largest of a bin.

Letters: N tokens, T latents of a sample.

Both find the k-th largest key bit by bit, by counting how many keys reach a trial: no sort, any k, nothing to compile
but a loop. Magnitudes of floats are ordered like their bits read as integers; NaN ranks above all numbers, so that it
is kept and seen.
"""

import triton
import triton.language as tl


@triton.jit
def kth_largest(key, k, found, TOP: tl.constexpr, LOWEST: tl.constexpr):
    """The k-th largest of non-negative keys, cut to bits TOP..LOWEST; `found` is a zero of their type."""
    for step in range(TOP - LOWEST + 1):
        trial = found | ((found + 1 - found) << (TOP - step))
        reached = tl.sum((key >= trial).to(tl.int32), axis=0)
        found = tl.where(reached >= k, trial, found)
    return found


@triton.jit
def bar_kernel(u_NT, start_T, bar_N, T, k, SIGNED: tl.constexpr, ROOM: tl.constexpr):
    """A number at or just below the k-th largest magnitude of a row of the sample, and not below zero."""
    row = tl.program_id(0).to(tl.int64)
    latent = tl.arange(0, ROOM)
    u = tl.load(u_NT + row * T + latent, mask=latent < T, other=0.0)
    u += tl.load(start_T + latent, mask=latent < T, other=0.0)
    magnitude = tl.abs(u) if SIGNED else tl.maximum(u, 0.0)
    key = magnitude.to(tl.int32, bitcast=True)
    found = kth_largest(key, k, tl.zeros([], tl.int32), 30, 8)
    tl.store(bar_N + row, found.to(tl.float32, bitcast=True))


@triton.jit
def select_kernel(records, counts_N, bar_N, above_N, capacity, k, SIGNED: tl.constexpr, ROOM: tl.constexpr):
    """Keep the k largest records of a bin, equal ones by smaller latent; above_N counts those above the bar.

    A bin that overflowed is emptied and counts -1.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_N + row)
    stored = tl.where(count <= capacity, count, 0)
    entry = tl.arange(0, ROOM)
    record = tl.load(records + row * capacity + entry, mask=entry < stored, other=0)
    value = record.to(tl.int32).to(tl.float32, bitcast=True)
    magnitude = tl.abs(value)
    counts = (value != 0) if SIGNED else ((value > 0) | (value != value))
    bits = magnitude.to(tl.int32, bitcast=True).to(tl.int64)
    key = tl.where(counts, (bits << 32) | (0x7FFFFFFF - (record >> 32)), -1)
    above = tl.sum((counts & ((magnitude > tl.load(bar_N + row)) | (value != value))).to(tl.int32), axis=0)
    found = kth_largest(key, k, tl.zeros([], tl.int64), 62, 0)
    kept = ((key >= found) & (key > 0)).to(tl.int32)
    at = tl.cumsum(kept, axis=0) - kept
    tl.store(records + row * capacity + at, record, mask=kept > 0)
    tl.store(counts_N + row, tl.sum(kept, axis=0))
    tl.store(above_N + row, tl.where(stored == count, above, -1))
