"""Kernels that emit records of what fires; the dense [N, C] stays in registers, a tile of it at a time.

Letters: N tokens, C latents, D width, T latents of a tile, B bins.

A record is an int64: the latent above, the bits of the fp32 value below, so that records of a bin sort by latent. Bins
count past their capacity; only what fits is stored. `append_kernel` has one bin per token and takes places from its
counter, in any order. `words_kernel` has a bin per token and stripe of latents, owned by one program, and takes places
by counting bits: no atomics, in order. `scan_kernel` reads pre-activations that a library's product has written.

Blocks reach past the edges. What rows past N emit goes to one bin more than there are, which nobody reads; latents past
C never fire, because their sums start at -inf and their weights read as zeros.

In the interpreter there is no PTX and no bf16 product: INTERPRET takes plain stores and casts to fp32.
"""

import triton
import triton.language as tl

from gradsae_kernels.emit import ptx
from gradsae_kernels.emit.firing import Rule
from gradsae_kernels.launches import interpreting

FOLDED = tl.constexpr(int(Rule.FOLDED))
ABOVE = tl.constexpr(int(Rule.ABOVE))
TWO_SIDED = tl.constexpr(int(Rule.TWO_SIDED))
BAR = tl.constexpr(int(Rule.BAR))
MAGNITUDE = tl.constexpr(int(Rule.MAGNITUDE))

INTERPRET = tl.constexpr(interpreting())
APPEND_1 = tl.constexpr(ptx.append(1))
APPEND_1_CONSTRAINTS = tl.constexpr(ptx.append_constraints(1))
APPEND_4 = tl.constexpr(ptx.append(4))
APPEND_4_CONSTRAINTS = tl.constexpr(ptx.append_constraints(4))
PLACE = tl.constexpr(ptx.PLACE)
PLACE_CONSTRAINTS = tl.constexpr(ptx.PLACE_CONSTRAINTS)
WORD = tl.constexpr(32)


@triton.jit
def fires(over):
    return (over > 0) | (over != over)  # NaN must come through to be reported


@triton.jit
def popcount(word):
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return ((((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24) & 0xFF


@triton.jit
def record_of(latent, value):
    return (latent.to(tl.int64) << 32) | (value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def excess(u, row, latent, N, C, above_C, below_C, bar_N, slack_N, slack_C, RULE: tl.constexpr):
    """How far u lies above what it must pass; a FOLDED u is that already. NaN stays NaN; slack widens both sides."""
    row = tl.minimum(row, N - 1)
    if RULE == FOLDED:
        over = u
    elif RULE == ABOVE:
        over = u - tl.load(above_C + latent, mask=latent < C, other=float("inf"))[None, :]
    elif RULE == TWO_SIDED:
        above = tl.load(above_C + latent, mask=latent < C, other=float("inf"))
        below = tl.load(below_C + latent, mask=latent < C, other=0.0)
        under = tl.where((latent < C)[None, :], below[None, :] - u, float("-inf"))
        over = tl.maximum(u - above[None, :], under, propagate_nan=tl.PropagateNan.ALL)
    elif RULE == BAR:
        over = u - tl.load(bar_N + row)[:, None]
    else:
        over = tl.abs(u) - tl.load(bar_N + row)[:, None]
    if RULE != FOLDED and slack_N is not None:
        over += tl.load(slack_N + row)[:, None] * tl.load(slack_C + latent, mask=latent < C, other=0.0)[None, :]
    if RULE == MAGNITUDE or (RULE != FOLDED and slack_N is not None):
        over = tl.where((latent < C)[None, :], over, float("-inf"))
    return over


@triton.jit
def start_of(row, latent, N, C, start_C, bar_N, slack_N, slack_C, RULE: tl.constexpr):
    """Where the sums of a tile start; a FOLDED rule has its slack and bar in them, and costs nothing afterwards."""
    row = tl.minimum(row, N - 1)
    start = tl.load(start_C + latent, mask=latent < C, other=float("-inf"))[None, :]
    if RULE == FOLDED:
        if slack_N is not None:
            by_latent = tl.load(slack_C + latent, mask=latent < C, other=0.0)
            start = start + tl.load(slack_N + row)[:, None] * by_latent[None, :]
        if bar_N is not None:
            start = start - tl.load(bar_N + row)[:, None]
        if slack_N is not None or bar_N is not None:
            start = tl.where((latent < C)[None, :], start, float("-inf"))
    return start


@triton.jit
def multiply(
    x_ND,
    w_CD,
    first_row,
    first_latent,
    acc,
    N,
    C,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """acc + x @ w.T of one tile; BULK reads through tensor descriptors, which fill with zeros past the edges."""
    if BULK:
        for d in range(0, D, BLOCK_D):
            x = x_ND.load([first_row, d])
            w = w_CD.load([first_latent, d])
            if INTERPRET:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
    else:
        lane = tl.arange(0, BLOCK_D)
        row = tl.minimum(first_row + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
        latent = first_latent + tl.arange(0, BLOCK_C)
        x_at = x_ND + row[:, None] * D + lane[None, :]
        w_at = w_CD + latent.to(tl.int64)[None, :] * D + lane[:, None]
        for d in range(0, D, BLOCK_D):
            x = tl.load(x_at + d, mask=lane[None, :] < D - d, other=0.0)
            w = tl.load(w_at + d, mask=(lane[:, None] < D - d) & (latent[None, :] < C), other=0.0)
            if INTERPRET:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def append_kernel(
    x_ND,
    w_CD,
    start_C,
    above_C,
    below_C,
    bar_N,
    slack_N,
    slack_C,
    records,
    counts_N,
    N,
    C,
    D,
    capacity,
    base,  # the latent that column 0 of w_CD is
    RULE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    BULK: tl.constexpr,
):
    """One bin per token. Programs walk the tiles; GROUP blocks of tokens use a block of latents while it is cached."""
    blocks_N, blocks_C = tl.cdiv(N, BLOCK_N), tl.cdiv(C, BLOCK_C)
    for tile in range(tl.program_id(0), blocks_N * blocks_C, tl.num_programs(0)):
        group, place = tile // (GROUP * blocks_C), tile % (GROUP * blocks_C)
        height = tl.minimum(blocks_N - group * GROUP, GROUP)
        first_row = (group * GROUP + place % height) * BLOCK_N
        first_latent = (place // height) * BLOCK_C
        row, latent = first_row + tl.arange(0, BLOCK_N), first_latent + tl.arange(0, BLOCK_C)
        start = start_of(row, latent, N, C, start_C, bar_N, slack_N, slack_C, RULE)
        u = tl.zeros([BLOCK_N, BLOCK_C], tl.float32) + start
        u = multiply(x_ND, w_CD, first_row, first_latent, u, N, C, D, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, BULK)
        over = excess(u, row, latent, N, C, above_C, below_C, bar_N, slack_N, slack_C, RULE)
        if INTERPRET:
            bins = tl.broadcast_to(tl.minimum(row, N)[:, None], [BLOCK_N, BLOCK_C])
            fired = fires(over)
            at = tl.atomic_add(counts_N + bins, 1, mask=fired)
            to = records + bins.to(tl.int64) * capacity + at
            tl.store(to, record_of((base + latent)[None, :], u), mask=fired & (at < capacity))
        else:
            tl.inline_asm_elementwise(
                APPEND_4 if PACK == 4 else APPEND_1,
                APPEND_4_CONSTRAINTS if PACK == 4 else APPEND_1_CONSTRAINTS,
                [
                    over,
                    u,
                    tl.minimum(row, N)[:, None],
                    (base + latent)[None, :],
                    counts_N.to(tl.int64),
                    records.to(tl.int64),
                    capacity,
                ],
                dtype=tl.int32,
                is_pure=False,
                pack=PACK,
            )


@triton.jit
def words_kernel(
    x_ND,
    w_CD,
    start_C,
    above_C,
    below_C,
    bar_N,
    slack_N,
    slack_C,
    records,
    counts_B,
    N,
    C,
    D,
    capacity,
    stripes,
    stripe_blocks,
    RULE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BULK: tl.constexpr,
):
    """A bin per token and stripe. A program owns a block of tokens and a stripe and walks its tiles in order."""
    stripe, first_row = tl.program_id(0) % stripes, tl.program_id(0) // stripes * BLOCK_N
    row, lane = first_row + tl.arange(0, BLOCK_N), tl.arange(0, WORD)[None, None, :]
    bins = tl.minimum(row, N) * stripes + stripe
    found_N = tl.zeros([BLOCK_N], tl.int32)
    first_block = stripe * stripe_blocks
    for block in range(first_block, tl.minimum(first_block + stripe_blocks, tl.cdiv(C, BLOCK_C))):
        latent = block * BLOCK_C + tl.arange(0, BLOCK_C)
        start = start_of(row, latent, N, C, start_C, bar_N, slack_N, slack_C, RULE)
        u = tl.zeros([BLOCK_N, BLOCK_C], tl.float32) + start
        u = multiply(x_ND, w_CD, first_row, block * BLOCK_C, u, N, C, D, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, BULK)
        over = excess(u, row, latent, N, C, above_C, below_C, bar_N, slack_N, slack_C, RULE)
        fired = tl.reshape(fires(over).to(tl.int32), [BLOCK_N, BLOCK_C // WORD, WORD])
        word = tl.sum(fired << lane, axis=2)
        counts = popcount(word)
        before = found_N[:, None] + tl.cumsum(counts, axis=1) - counts
        found_N += tl.sum(counts, axis=1)
        value = tl.reshape(u, [BLOCK_N, BLOCK_C // WORD, WORD])
        word_latent = (block * BLOCK_C + tl.arange(0, BLOCK_C // WORD) * WORD)[None, :, None]
        if INTERPRET:
            at = before[:, :, None] + popcount(word[:, :, None] & ((1 << lane) - 1))
            to = records + bins.to(tl.int64)[:, None, None] * capacity + at
            tl.store(to, record_of(word_latent + lane, value), mask=(fired > 0) & (at < capacity))
        else:
            tl.inline_asm_elementwise(
                PLACE,
                PLACE_CONSTRAINTS,
                [
                    word[:, :, None],
                    lane,
                    before[:, :, None],
                    value,
                    bins[:, None, None],
                    word_latent,
                    records.to(tl.int64),
                    capacity,
                ],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
    tl.store(counts_B + bins, found_N)


@triton.jit
def scan_kernel(
    u_NT,
    start_C,
    above_C,
    below_C,
    bar_N,
    slack_N,
    slack_C,
    records,
    counts_N,
    N,
    T,
    capacity,
    base,
    RULE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One bin per token, one program per token: append what fires among the T latents of a tile, in order."""
    row = tl.program_id(0) + tl.zeros([1], tl.int32)
    bin_at = row.to(tl.int64)
    found = tl.load(counts_N + row)
    for first in range(0, T, BLOCK_T):
        latent = first + tl.arange(0, BLOCK_T)
        start = start_of(row, latent, N, T, start_C, bar_N, slack_N, slack_C, RULE)
        product = tl.load(u_NT + bin_at[:, None] * T + latent[None, :], mask=(latent < T)[None, :], other=0.0)
        u = product + start
        over = excess(u, row, latent, N, T, above_C, below_C, bar_N, slack_N, slack_C, RULE)
        fired = fires(over).to(tl.int32)
        at = found[:, None] + tl.cumsum(fired, axis=1) - fired
        to = records + bin_at[:, None] * capacity + at
        tl.store(to, record_of((base + latent)[None, :], u), mask=(fired > 0) & (at < capacity))
        found += tl.sum(fired, axis=1)
    tl.store(counts_N + row, found)
