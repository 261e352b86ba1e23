"""Kernels before and after the product, one program per row: a bf16 copy with its norms, and records into rows.

Letters: R rows, D width, B bins.
"""

import triton
import triton.language as tl


@triton.jit
def lower_kernel(full_RD, low_RD, norms_3R, R, D, LARGEST: tl.constexpr, BLOCK_D: tl.constexpr):
    """The bf16 copy of a row, finite where the row is, and three norms: of the row, of the copy, of what was lost.

    Squares are taken of numbers that are at most 1, so that neither huge nor tiny rows lose their norm.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    full = tl.load(full_RD + row * D + column, mask=column < D, other=0.0).to(tl.float32)
    bounded = tl.where(full > LARGEST, LARGEST, tl.where(full < -LARGEST, -LARGEST, full))
    low = bounded.to(tl.bfloat16)
    tl.store(low_RD + row * D + column, low, mask=column < D)
    largest = tl.max(tl.abs(full), axis=0)
    scale = tl.where(largest > 0, largest, 1.0)
    full, low = full / scale, low.to(tl.float32) / scale
    tl.store(norms_3R + row, tl.sqrt(tl.sum(full * full, axis=0)) * scale)
    tl.store(norms_3R + R + row, tl.sqrt(tl.sum(low * low, axis=0)) * scale)
    tl.store(norms_3R + 2 * R + row, tl.sqrt(tl.sum((full - low) * (full - low), axis=0)) * scale)


@triton.jit
def pack_kernel(records, counts_B, begin_B, indices, values, capacity, ORDERED: tl.constexpr, BLOCK: tl.constexpr):
    """Move the records of one bin, by rank of their latents, to entry begin_B of the rows.

    Ranks are counted, not sorted: entries before me are those with a smaller latent. Bins are short.
    """
    at = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_B + at)
    begin = tl.load(begin_B + at)
    for first in range(0, count, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        record = tl.load(records + at * capacity + entry, mask=entry < count, other=0)
        rank = entry
        if not ORDERED:
            rank = tl.zeros([BLOCK], tl.int32)
            for other in range(0, count, BLOCK):
                rival = other + tl.arange(0, BLOCK)
                less = tl.load(records + at * capacity + rival, mask=rival < count, other=0x7FFFFFFFFFFFFFFF)
                rank += tl.sum((less[None, :] < record[:, None]).to(tl.int32), axis=1)
        tl.store(indices + begin + rank, (record >> 32).to(tl.int32), mask=entry < count)
        tl.store(values + begin + rank, record.to(tl.int32).to(tl.float32, bitcast=True), mask=entry < count)
