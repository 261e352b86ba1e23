"""The portable fast path of `decode`: decoder rows of active latents are added up while a token's sum lies in cache.

The rival, a dense [N, C] of mostly zeros times the decoder, costs as much as the encoder did. Half-precision decoder
rows are widened a few MB at a time.

Letters: N tokens, D model width, C latents, P pairs of a piece.
"""

import torch
from torch import Tensor

from gradsae_kernels.compiled import runs_compiled
from gradsae_kernels.gather import pair_pieces, widened
from gradsae_kernels.sparse_rows import SparseRows
from gradsae_kernels.threads import run_shards, shard_rows


def decode_tiled(rows: SparseRows, w_dec_CD: Tensor, bias_D: Tensor | None) -> Tensor:
    """The contract of `decode`."""
    num_rows, width = len(rows.indptr) - 1, w_dec_CD.shape[1]
    decoded_ND = torch.zeros(num_rows, width, device=w_dec_CD.device)
    if bias_D is not None:
        decoded_ND += bias_D
    if not runs_compiled(w_dec_CD.device):
        return _decode_torch(rows, w_dec_CD, decoded_ND)
    from gradsae_kernels.decode.numba_kernel import add_rows

    shards = shard_rows(num_rows)
    for begin, indptr, indices, w_CD in widened(rows, w_dec_CD):
        arrays = (part.numpy() for part in (indptr, indices, rows.values[begin:], w_CD, decoded_ND))
        run_shards(add_rows, shards, *arrays)
    return decoded_ND


def _decode_torch(rows: SparseRows, w_dec_CD: Tensor, decoded_ND: Tensor) -> Tensor:
    for begin, end in pair_pieces(len(rows.indices), w_dec_CD.shape[1]):
        w_PD = w_dec_CD.index_select(0, rows.indices[begin:end]).float().mul_(rows.values[begin:end, None])
        lengths = (rows.indptr.clamp(begin, end)).diff()
        # Atomic additions of index_add would make a GPU result vary from run to run.
        decoded_ND += torch.segment_reduce(w_PD, "sum", lengths=lengths, axis=0, initial=0.0)
    return decoded_ND
