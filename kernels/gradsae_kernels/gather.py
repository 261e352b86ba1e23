"""Decoder rows of active pairs, a bounded number at a time; letters: C latents, D model width, P pairs of a piece."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gradsae_kernels.sparse_rows import SparseRows

PIECE_ELEMENTS = 2**20  # 4 MB of fp32: gathered rows are still in cache when they are used


def pair_pieces(num_pairs: int, width: int) -> list[tuple[int, int]]:
    """Cut [0, num_pairs) so that the decoder rows of one piece fit the buffer; a piece may end inside a token."""
    size = max(1, PIECE_ELEMENTS // width)
    return [(begin, min(begin + size, num_pairs)) for begin in range(0, num_pairs, size)]


def widened(rows: SparseRows, w_CD: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield (first pair, indptr, indices, fp32 weights) that cover all pairs; positions count from the first pair.

    fp32 weights come back as they are, in one go. Of others only the rows of a piece of pairs are copied, in the
    order of the pairs, so that the indices are 0, 1, 2, ...; tokens outside of the piece have empty rows.
    """
    if w_CD.dtype == torch.float32:
        yield 0, rows.indptr, rows.indices, w_CD
        return
    for begin, end in pair_pieces(len(rows.indices), w_CD.shape[1]):
        indptr = rows.indptr.clamp(begin, end) - begin
        indices = torch.arange(end - begin, dtype=torch.int32, device=w_CD.device)
        yield begin, indptr, indices, w_CD.index_select(0, rows.indices[begin:end]).float()
