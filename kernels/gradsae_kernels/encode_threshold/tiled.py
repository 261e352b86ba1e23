"""The portable fast path of `encode_threshold`: a matrix product per tile, compacted while the tile is in cache.

The rival is one big product and a `nonzero`; its [N, C] goes to memory and back. Here a tile of some MB is scanned by
compiled loops (CPU), or by torch (other devices, or no numba), and only what fires is kept.

Letters: N tokens of a chunk, C latents, D model width, T latents of a tile, S tiles.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradsae_kernels.compiled import runs_compiled
from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.encode_threshold.rule import ThresholdRule
from gradsae_kernels.sparse_rows import SparseRows, concatenate, from_entries
from gradsae_kernels.threads import run_shards, shard_rows
from gradsae_kernels.tiles import preactivation_tiles, tile_width, token_chunks

Array = npt.NDArray[Any]
Shards = list[tuple[int, int]]


def encode_threshold_tiled(x_ND: Tensor, w_enc_CD: Tensor, rule: ThresholdRule) -> SparseRows:
    """The contract of `encode_threshold`, chunk of tokens by chunk of tokens."""
    encode_chunk = _encode_compiled if runs_compiled(x_ND.device) else _encode_torch
    return concatenate([encode_chunk(x_ND[a:b], w_enc_CD, rule, a) for a, b in token_chunks(len(x_ND))])


def _encode_compiled(x_ND: Tensor, w_enc_CD: Tensor, rule: ThresholdRule, first_row: int) -> SparseRows:
    from gradsae_kernels.encode_threshold.numba_kernel import scan_tile

    width = tile_width(len(x_ND), w_enc_CD)
    shards = shard_rows(len(x_ND))
    # Room for every latent to fire; the system gives memory only to the part that is written.
    indices = np.empty(len(x_ND) * (width + 1), np.int32)
    values = np.empty(len(x_ND) * (width + 1), np.float32)
    counts_SN, found_indices, found_values = [], [], []
    for first, u_NT in preactivation_tiles(x_ND, w_enc_CD, width):
        counts_N = np.empty(len(x_ND), np.int64)
        parts = _vectors(rule, first, u_NT.shape[1])
        run_shards(scan_tile, shards, u_NT.numpy(), *parts, first, indices, values, counts_N)
        if len(counts_N) and counts_N.min() < 0:
            raise nonfinite_row(first_row + int(counts_N.argmin()))
        for start, stop in shards:
            begin = start * (u_NT.shape[1] + 1)
            end = begin + int(counts_N[start:stop].sum())
            found_indices.append(indices[begin:end].copy())
            found_values.append(values[begin:end].copy())
        counts_SN.append(counts_N)
    return _merge(np.stack(counts_SN), found_indices, found_values, shards)


def _vectors(rule: ThresholdRule, first: int, count: int) -> list[Array | None]:
    """Bias, above, below, scale, offset of a tile."""
    vectors = (rule.bias_C, rule.above_C, rule.below_C, rule.scale_C, rule.offset_C)
    return [None if vector is None else vector[first : first + count].numpy() for vector in vectors]


def _merge(counts_SN: Array, found_indices: list[Array], found_values: list[Array], shards: Shards) -> SparseRows:
    from gradsae_kernels.encode_threshold.numba_kernel import merge_tiles

    indptr = np.zeros(counts_SN.shape[1] + 1, np.int64)
    np.cumsum(counts_SN.sum(axis=0), out=indptr[1:])
    offsets_SN = (np.cumsum(counts_SN) - counts_SN.ravel()).reshape(counts_SN.shape)
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    found = np.concatenate(found_indices), np.concatenate(found_values)
    run_shards(merge_tiles, shards, counts_SN, offsets_SN, *found, indptr, indices, values)
    return SparseRows(torch.from_numpy(indptr), torch.from_numpy(indices), torch.from_numpy(values))


def _encode_torch(x_ND: Tensor, w_enc_CD: Tensor, rule: ThresholdRule, first_row: int) -> SparseRows:
    rows, indices, values = [], [], []
    for first, u_NT in preactivation_tiles(x_ND, w_enc_CD, tile_width(len(x_ND), w_enc_CD)):
        row, latent, value = _active(u_NT, rule, first)
        wrong = ~torch.isfinite(value)
        if wrong.any():
            raise nonfinite_row(first_row + int(row[wrong][0]))
        rows.append(row)
        indices.append(latent.to(torch.int32))
        values.append(value)
    return from_entries(torch.cat(rows), torch.cat(indices), torch.cat(values), len(x_ND))


def _active(u_NT: Tensor, rule: ThresholdRule, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, latent and value of what fires in a tile, rows ascending; NaN fires, so that it is seen."""
    tile = slice(first, first + u_NT.shape[1])
    u_NT += rule.bias_C[tile]
    row, column = rule.fires(u_NT, tile).nonzero(as_tuple=True)
    latent, value = column + first, rule.values(u_NT[row, column], column + first)
    kept = value != 0
    return row[kept], latent[kept], value[kept]
