"""Bins of records, and the way from bins to compressed rows: nothing that fired is lost.

Letters: N tokens, B bins (one or more per token, token after token).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.sparse_rows import SparseRows, replace_rows

RECORD_ELEMENTS = 2**22  # 32 MB of records at a time
PACK_BLOCK = 32
LONGEST_RANKED = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bins:
    """What was found. A count above the capacity is true all the same; only the records that fit are there."""

    records: Tensor  # int64 [>= B, capacity]: latent << 32 | bits of the value
    counts_NB: Tensor  # int32 [N, bins of a token]
    ordered: bool  # whether the records of a bin ascend by latent

    @property
    def capacity(self) -> int:
        return self.records.shape[1]


def rows_of_bins(bins: Bins, fill_again: Callable[[Tensor, int], Bins]) -> SparseRows:
    """All that fired, in rows. `fill_again(rows, room)` gives bins of this room for rows that had too little.

    Rows that are filled again count for themselves: their bins may be cut otherwise, and a library's product of fewer
    rows may round otherwise. Their room grows until it is enough.
    """
    fits_N = (bins.counts_NB <= bins.capacity).all(dim=1)
    counts_N = bins.counts_NB.sum(dim=1, dtype=torch.int64)
    indptr = torch.zeros(len(counts_N) + 1, dtype=torch.int64, device=counts_N.device)
    torch.cumsum(counts_N * fits_N, dim=0, out=indptr[1:])
    total, fullest = torch.stack([indptr[-1], (counts_N * ~fits_N).amax()]).tolist()
    rows = SparseRows(
        indptr,
        torch.empty(total, dtype=torch.int32, device=counts_N.device),
        torch.empty(total, dtype=torch.float32, device=counts_N.device),
    )
    _pack(bins if bins.ordered or bins.capacity <= LONGEST_RANKED else _sorted(bins), rows, fits_N)
    room = max(fullest, 2 * bins.capacity)
    for part in (~fits_N).nonzero().flatten().split(max(1, RECORD_ELEMENTS // room)) if fullest else ():
        rows = replace_rows(rows, part, _rows_filled_again(part, room, fill_again))
    return rows


def _rows_filled_again(ids: Tensor, room: int, fill_again: Callable[[Tensor, int], Bins]) -> SparseRows:
    return rows_of_bins(fill_again(ids, room), lambda inner, more: fill_again(ids[inner], more))


def _sorted(bins: Bins) -> Bins:
    """The same bins with records in order of latents: counting ranks is quadratic."""
    place = torch.arange(bins.capacity, device=bins.records.device)
    counts_B = bins.counts_NB.flatten()
    records = bins.records[: len(counts_B)].masked_fill(place >= counts_B[:, None], torch.iinfo(torch.int64).max)
    return replace(bins, records=records.sort(dim=1).values, ordered=True)


def _pack(bins: Bins, rows: SparseRows, fits_N: Tensor) -> None:
    """Write the bins of the tokens that fit to their rows."""
    from gradsae_kernels.emit.row_kernel import pack_kernel

    counts_NB = bins.counts_NB * fits_N[:, None]
    before_NB = counts_NB.cumsum(dim=1, dtype=torch.int64) - counts_NB
    begin_B = (rows.indptr[:-1, None] + before_NB).flatten()
    LAUNCHES["pack ordered" if bins.ordered else "pack by rank"] += 1
    pack_kernel[(len(begin_B),)](
        bins.records,
        counts_NB,
        begin_B,
        rows.indices,
        rows.values,
        bins.capacity,
        ORDERED=bins.ordered,
        BLOCK=PACK_BLOCK,
        num_warps=1,
    )
