"""Compiled loops of `encode_threshold` on the CPU.

Letters: N tokens of a chunk, T latents of a tile, S tiles.

Where nothing fires the scan is bound by memory, so it asks a block of 64 latents one question that becomes vector
instructions ("does any of you fire?") and looks at 16 at a time only after a yes; there it writes every latent and
moves on past those that fire, without a branch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gradsae_kernels.compiled import compiled

Array = npt.NDArray[Any]

BLOCK = 64
LANES = 16
LARGEST = np.finfo(np.float32).max


@compiled(inline="always")
def fires(u: Any, above: Any) -> Any:
    """Whether u is above the threshold, or NaN: a NaN must come through to be reported."""
    return not (u <= above)


@compiled(inline="always")  # the loop inside vectorises only where its length is known
def any_fires(row: Array, bias: Array, above: Array, below: Any, first: int, stop: int) -> bool:
    """Whether one of the latents first:stop fires (a reduction without an early exit, so that it vectorises)."""
    count = np.int32(0)
    for t in range(first, stop):
        u = row[t] + bias[t]
        count += np.int32(fires(u, above[t]))
        if below is not None:
            count += np.int32(u < below[t])
    return bool(count > 0)


@compiled(inline="always")
def emit(
    row: Array,
    bias: Array,
    above: Array,
    below: Any,
    scale: Any,
    offset: Any,
    first: int,
    stop: int,
    base: int,
    indices: Array,
    values: Array,
    at: int,
) -> int:
    """Append the active latents of first:stop at `at`; return where the next one goes. Overwrites one entry past it."""
    for t in range(first, stop):
        u = row[t] + bias[t]
        keep = fires(u, above[t])
        value = u
        if below is not None:
            keep = (keep | (u < below[t])) & (u != 0)
        if scale is not None:
            value = scale[t] * u + offset[t]
            keep = keep & (not (value <= 0))
        indices[at] = base + t
        values[at] = value
        at += int(keep)
    return at


@compiled()
def scan_tile(
    start: int,
    stop: int,
    u_NT: Array,
    bias: Array,
    above: Array,
    below: Any,
    scale: Any,
    offset: Any,
    base: int,
    indices: Array,
    values: Array,
    counts_N: Array,
) -> None:
    """Active latents of rows start:stop, one after another from entry start * (T + 1) on.

    A row takes at most T entries, so nothing can overflow. A row that is not finite gets the count -1.
    """
    width = u_NT.shape[1]
    whole = width // BLOCK * BLOCK
    at = start * (width + 1)
    for n in range(start, stop):
        row = u_NT[n]
        begin = at
        for block in range(0, whole, BLOCK):
            if any_fires(row, bias, above, below, block, block + BLOCK):
                for t in range(block, block + BLOCK, LANES):
                    if any_fires(row, bias, above, below, t, t + LANES):
                        at = emit(row, bias, above, below, scale, offset, t, t + LANES, base, indices, values, at)
        at = emit(row, bias, above, below, scale, offset, whole, width, base, indices, values, at)
        finite = True
        for entry in range(begin, at):
            finite &= abs(values[entry]) <= LARGEST
        counts_N[n] = at - begin if finite else -1


@compiled()
def merge_tiles(
    start: int,
    stop: int,
    counts_SN: Array,
    offsets_SN: Array,
    tiled_indices: Array,
    tiled_values: Array,
    indptr: Array,
    indices: Array,
    values: Array,
) -> None:
    """Bring entries in (tile, row) order into row order: a row's tiles follow each other, latents ascending."""
    for n in range(start, stop):
        to = indptr[n]
        for tile in range(counts_SN.shape[0]):
            source = offsets_SN[tile, n]
            for entry in range(counts_SN[tile, n]):
                indices[to] = tiled_indices[source + entry]
                values[to] = tiled_values[source + entry]
                to += 1
