"""Pre-activations, one tile at a time in one reused buffer: the dense [N, C] is never made.

Letters: N tokens of a chunk, C latents, D model width, T latents of a tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_TOKENS = 1024
TILE_ELEMENTS = 2**21  # 8 MB of fp32: a tile stays in the last cache between the product and the scan
WIDENED_ELEMENTS = 2**22  # 16 MB for the fp32 copy of a tile of half-precision weights


def token_chunks(num_tokens: int, largest: int = CHUNK_TOKENS) -> list[tuple[int, int]]:
    """Cut [0, num_tokens) into runs of equal length, at most `largest` each."""
    count = max(1, -(-num_tokens // largest))
    return [(num_tokens * part // count, num_tokens * (part + 1) // count) for part in range(count)]


def tile_width(num_tokens: int, w_CD: Tensor) -> int:
    """Latents of a tile: as many as fit the buffers, a multiple of 64 unless that is all of them."""
    width = TILE_ELEMENTS // max(1, num_tokens)
    if w_CD.dtype != torch.float32:
        width = min(width, WIDENED_ELEMENTS // w_CD.shape[1])
    return min(w_CD.shape[0], max(64, width // 64 * 64))


def preactivation_tiles(x_ND: Tensor, w_CD: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first latent, u_NT = x @ w[first:first+T].T in fp32, no bias); the next step overwrites u_NT."""
    x_ND = x_ND.to(torch.float32)
    buffer = torch.empty(len(x_ND) * width, device=x_ND.device)
    for first in range(0, len(w_CD), width):
        w_TD = w_CD[first : first + width].to(torch.float32)
        u_NT = buffer[: len(x_ND) * len(w_TD)].view(len(x_ND), len(w_TD))
        torch.mm(x_ND, w_TD.T, out=u_NT)
        yield first, u_NT
