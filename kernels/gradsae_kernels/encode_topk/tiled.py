"""The portable fast path of `encode_topk`: a matrix product per tile, and a few candidates per row carried along.

The rival is one big product and `torch.topk` over [N, C], which costs several times the product and promises no order
of ties. Here a rising bar per row lets almost nothing of a tile through (see `numba_kernel.py`). Without numba, or on
other devices, the k best so far are merged with each tile by an integer key that is unique, hence exact and ordered.

Letters: N tokens of a chunk, C latents, D model width, T latents of a tile, R room for candidates, K = k.
"""

import numpy as np
import torch
from torch import Tensor

from gradsae_kernels.compiled import runs_compiled
from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.sparse_rows import SparseRows, concatenate
from gradsae_kernels.threads import run_shards, shard_rows
from gradsae_kernels.tiles import CHUNK_TOKENS, TILE_ELEMENTS, preactivation_tiles, tile_width, token_chunks


def encode_topk_tiled(x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, k: int, *, signed: bool) -> SparseRows:
    """The contract of `encode_topk`; chunks of tokens shrink as k grows, so that candidates stay small."""
    encode_chunk = _encode_compiled if runs_compiled(x_ND.device) else _encode_torch
    chunks = token_chunks(len(x_ND), max(1, min(CHUNK_TOKENS, TILE_ELEMENTS // _room(k))))
    return concatenate([encode_chunk(x_ND[a:b], w_enc_CD, bias_C, k, signed, a) for a, b in chunks])


def _room(k: int) -> int:
    """Candidates of a row between two cuts to k: more room means fewer cuts, but a bar that rises later."""
    return 2 * k + 64


def _encode_compiled(
    x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, k: int, signed: bool, first_row: int
) -> SparseRows:
    from gradsae_kernels.encode_topk.numba_kernel import collect_tile, finish_rows

    latents_NR = np.empty((len(x_ND), _room(k)), np.int32)
    values_NR = np.empty((len(x_ND), _room(k)), np.float32)
    candidates = latents_NR, values_NR, values_NR.view(np.int32)
    counts_N, bars_N = np.zeros(len(x_ND), np.int64), np.zeros(len(x_ND), np.float32)
    shards = shard_rows(len(x_ND))
    for first, u_NT in preactivation_tiles(x_ND, w_enc_CD, tile_width(len(x_ND), w_enc_CD)):
        bias_T = bias_C[first : first + u_NT.shape[1]].numpy()
        run_shards(collect_tile, shards, u_NT.numpy(), bias_T, k, signed, first, *candidates, counts_N, bars_N)
    run_shards(finish_rows, shards, k, *candidates, counts_N)
    if (counts_N < 0).any():
        raise nonfinite_row(first_row + int((counts_N < 0).argmax()))
    kept_NR = np.arange(_room(k)) < counts_N[:, None]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_N)])
    return SparseRows(*(torch.from_numpy(part) for part in (indptr, latents_NR[kept_NR], values_NR[kept_NR])))


def _encode_torch(x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, k: int, signed: bool, first_row: int) -> SparseRows:
    best_NK = torch.full((len(x_ND), k), -1, dtype=torch.int64, device=x_ND.device)
    for first, u_NT in preactivation_tiles(x_ND, w_enc_CD, tile_width(len(x_ND), w_enc_CD)):
        u_NT += bias_C[first : first + u_NT.shape[1]]
        wrong_N = (~torch.isfinite(u_NT) & (u_NT != -torch.inf if not signed else True)).any(dim=1)
        if wrong_N.any():
            raise nonfinite_row(first_row + int(wrong_N.to(torch.uint8).argmax()))
        best_NK = torch.cat([best_NK, _keys(u_NT, first, signed)], dim=1).topk(k, dim=1).values
    return _rows_of_keys(best_NK)


def _keys(u_NT: Tensor, first: int, signed: bool) -> Tensor:
    """Order by magnitude, then by smaller latent: magnitude bits, inverted latent, sign; -1 for what cannot be kept.

    Positive floats are ordered like their bits, so that the upper half is the magnitude and nothing is rounded.
    """
    latent_T = torch.arange(first, first + u_NT.shape[1], device=u_NT.device)
    magnitude_NT = u_NT.abs() if signed else u_NT
    bits_NT = magnitude_NT.view(torch.int32).to(torch.int64)
    keys_NT = (bits_NT << 32) | ((2**31 - 1 - latent_T) << 1) | (u_NT < 0)
    return torch.where(magnitude_NT > 0, keys_NT, -1)


def _rows_of_keys(keys_NK: Tensor) -> SparseRows:
    latent_NK = torch.where(keys_NK < 0, 2**31, 2**31 - 1 - ((keys_NK >> 1) & (2**31 - 1)))
    latent_NK, order_NK = latent_NK.sort(dim=1)
    keys_NK = keys_NK.gather(1, order_NK)
    kept_NK = keys_NK >= 0
    magnitude = (keys_NK[kept_NK] >> 32).to(torch.int32).view(torch.float32)
    indptr = torch.zeros(len(keys_NK) + 1, dtype=torch.int64, device=keys_NK.device)
    torch.cumsum(kept_NK.sum(dim=1), dim=0, out=indptr[1:])
    sign = 1 - 2 * (keys_NK[kept_NK] & 1)
    return SparseRows(indptr, latent_NK[kept_NK].to(torch.int32), magnitude * sign)
