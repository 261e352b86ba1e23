"""Tiles; letters: N tokens, D model width, C latents."""

import pytest
import torch

from gradsae_kernels.tiles import CHUNK_TOKENS, TILE_ELEMENTS, preactivation_tiles, tile_width, token_chunks


@pytest.mark.parametrize("num_tokens", [0, 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 5 * CHUNK_TOKENS - 1])
def test_chunks_cover_every_token_once_and_are_of_like_size(num_tokens: int) -> None:
    chunks = token_chunks(num_tokens)
    assert [token for a, b in chunks for token in range(a, b)] == list(range(num_tokens))
    sizes = [b - a for a, b in chunks]
    assert max(sizes) <= CHUNK_TOKENS
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [0, 1, 1000])
def test_a_tile_fits_its_buffers(dtype: torch.dtype, num_tokens: int) -> None:
    w_CD = torch.empty(200_000, 4096, dtype=dtype, device="meta")
    width = tile_width(num_tokens, w_CD)
    assert width % 64 == 0
    assert num_tokens * width <= TILE_ELEMENTS
    assert dtype == torch.float32 or width * 4096 * 4 <= 2**24


@pytest.mark.parametrize("width", [1, 7, 20, 64])
def test_tiles_make_up_the_product(width: int) -> None:
    x_ND, w_CD = torch.arange(15.0).view(5, 3), torch.arange(60.0).view(20, 3)
    tiles = [(first, u_NT.clone()) for first, u_NT in preactivation_tiles(x_ND, w_CD, width)]
    assert [first for first, _ in tiles] == list(range(0, 20, width))
    assert torch.equal(torch.cat([u_NT for _, u_NT in tiles], dim=1), x_ND @ w_CD.T)
