"""The latents whose decoder rows point most nearly the same way: cosines of all pairs of rows, a block at a time.

Costs C²·D multiplications. No [C, C] exists: of a tile of latents against a block of others, at most 64 MiB of cosines;
the K best so far are merged with those of each block. Rows are used as they are, in float32; the per-token factors of
effective decoder rows are lengths, which a cosine does not see.

Letters: C latents, D width, A latents of a tile, B of a block, K neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gradsae_fast.records import Array

TILE, BLOCK = 2048, 8192  # latents; a product of these is 64 MiB of float32


def nearest_rows(row_CD: Tensor, count: int, *, on_tile: Callable[[int], None] | None = None) -> tuple[Array, Array]:
    """The `count` rows of largest cosine with each row, itself left out: latents int64 and cosines float32 [C, K].

    K is C - 1 where there are fewer. Largest first, of equal ones the smaller latent; which of equal ones at the end of
    the list are in it is not said. A row of zeros has a cosine of 0 with all. `on_tile` is told how many are done.
    """
    count = min(count, len(row_CD) - 1)
    length_C = row_CD.float().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    found = []
    for first in range(0, len(row_CD), TILE):
        found.append(_nearest_of_tile(row_CD, length_C, slice(first, first + TILE), count))
        if on_tile is not None:
            on_tile(min(first + TILE, len(row_CD)))
    latent_CK, cosine_CK = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return latent_CK, cosine_CK


def _nearest_of_tile(row_CD: Tensor, length_C: Tensor, tile: slice, count: int) -> tuple[Tensor, Tensor]:
    """Latents and cosines [A, K] of the nearest rows of a tile's latents."""
    unit_AD = row_CD[tile].float() / length_C[tile, None]
    own_A = torch.arange(len(row_CD), device=row_CD.device)[tile]
    latent_AK = own_A.new_empty(len(own_A), 0)
    cosine_AK = length_C.new_empty(len(own_A), 0)
    for first in range(0, len(row_CD), BLOCK):
        block = slice(first, first + BLOCK)
        cosine_AB = unit_AD @ (row_CD[block].float() / length_C[block, None]).T
        latent_B = first + torch.arange(cosine_AB.shape[1], device=row_CD.device)
        cosine_AB[own_A[:, None] == latent_B] = -torch.inf
        best = cosine_AB.topk(min(count, len(latent_B)))
        latent_AK, cosine_AK = torch.cat([latent_AK, latent_B[best.indices]], 1), torch.cat([cosine_AK, best.values], 1)
        kept_AK = cosine_AK.argsort(dim=1, descending=True, stable=True)[:, :count]
        latent_AK, cosine_AK = latent_AK.gather(1, kept_AK), cosine_AK.gather(1, kept_AK)
    by_number_AK = latent_AK.argsort(dim=1)
    latent_AK, cosine_AK = latent_AK.gather(1, by_number_AK), cosine_AK.gather(1, by_number_AK)
    order_AK = cosine_AK.argsort(dim=1, descending=True, stable=True)
    return latent_AK.gather(1, order_AK), cosine_AK.gather(1, order_AK)
