"""The portable path of `encode_groupmax`: a matrix product per tile, and its maxima while the tile is in cache.

A tile holds whole groups, or a part of one group where groups are wider than a tile; then the best so far is carried
along. What is kept of a chunk of tokens is one value and one latent per row and group.

Letters: N tokens of a chunk, C latents, D model width, S latents of a group, B groups of a tile, T latents of a tile,
G groups.
"""

import torch
from torch import Tensor

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.sparse_rows import SparseRows, concatenate
from gradsae_kernels.tiles import CHUNK_TOKENS, TILE_ELEMENTS, preactivation_tiles, tile_width, token_chunks


def encode_groupmax_tiled(x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, groups: int) -> SparseRows:
    """The contract of `encode_groupmax`; chunks of tokens shrink where there are many groups."""
    chunks = token_chunks(len(x_ND), max(1, min(CHUNK_TOKENS, TILE_ELEMENTS // groups)))
    return concatenate([_encode_chunk(x_ND[a:b], w_enc_CD, bias_C, groups, a) for a, b in chunks])


def _encode_chunk(x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, groups: int, first_row: int) -> SparseRows:
    size = len(w_enc_CD) // groups
    width = tile_width(len(x_ND), w_enc_CD)
    step = max(1, width // size) * size  # latents whose groups are finished together
    parts = []
    for first in range(0, len(w_enc_CD), step):
        block = slice(first, min(first + step, len(w_enc_CD)))
        parts.append(_best_of_groups(x_ND, w_enc_CD[block], bias_C[block], size, min(width, step), first, first_row))
    value_NG = torch.cat([values for values, _ in parts], dim=1)
    latent_NG = torch.cat([latents for _, latents in parts], dim=1)
    kept_NG = value_NG > 0
    indptr = torch.zeros(len(x_ND) + 1, dtype=torch.int64, device=x_ND.device)
    torch.cumsum(kept_NG.sum(dim=1), dim=0, out=indptr[1:])
    return SparseRows(indptr, latent_NG[kept_NG].to(torch.int32), value_NG[kept_NG])


def _best_of_groups(
    x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, size: int, width: int, first_latent: int, first_row: int
) -> tuple[Tensor, Tensor]:
    """Largest u and its latent [N, B] of the groups in these weights: several in one tile, or one in several tiles."""
    num_groups = len(w_enc_CD) // size
    best_NB = torch.full((len(x_ND), num_groups), -torch.inf, device=x_ND.device)
    latent_NB = torch.zeros(len(x_ND), num_groups, dtype=torch.int64, device=x_ND.device)
    begin_B = torch.arange(num_groups, device=x_ND.device) * size + first_latent
    for first, u_NT in preactivation_tiles(x_ND, w_enc_CD, width):
        u_NT += bias_C[first : first + u_NT.shape[1]]
        # max promises the first of equals, and gives NaN wherever there is one.
        value_NB, offset_NB = u_NT.unflatten(1, (num_groups, -1)).max(dim=2)
        wrong_N = (torch.isnan(value_NB) | (value_NB == torch.inf)).any(dim=1)
        if wrong_N.any():
            raise nonfinite_row(first_row + int(wrong_N.to(torch.uint8).argmax()))
        larger_NB = value_NB > best_NB  # an equal one of an earlier tile stays: it is the smaller latent
        best_NB = torch.where(larger_NB, value_NB, best_NB)
        latent_NB = torch.where(larger_NB, offset_NB + begin_B + first, latent_NB)
    return best_NB, latent_NB
