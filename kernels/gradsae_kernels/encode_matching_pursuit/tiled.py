"""The portable path of `encode_matching_pursuit`: steps of a chunk of tokens, each over the tokens that are not done.

A step costs one product of the residuals with all decoder rows, of which a running maximum is kept tile by tile, and
one gather of the rows that it chose. Products of the step before could be corrected instead of computed again, but
that needs the rows' products with each other, [C, C]; and a fresh product carries no error of the steps before.
A token that is done leaves the product, so what is paid is the steps that were taken.

Letters: N tokens of a chunk, M of them not done, D model width, C latents, T latents of a tile, I steps.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.sparse_rows import SparseRows, concatenate
from gradsae_kernels.tiles import CHUNK_TOKENS, TILE_ELEMENTS, preactivation_tiles, tile_width, token_chunks

FIRST_STEPS = 32  # room for so many steps is made at first, and doubled by need


def encode_matching_pursuit_tiled(
    x_ND: Tensor, w_dec_CD: Tensor, max_iterations: int, residual_threshold: float, stop_on_repeat: bool
) -> SparseRows:
    """The contract of `encode_matching_pursuit`; chunks of tokens shrink where many steps are allowed."""
    chunks = token_chunks(len(x_ND), max(1, min(CHUNK_TOKENS, TILE_ELEMENTS // max_iterations)))
    return concatenate(
        [_encode_chunk(x_ND[a:b], w_dec_CD, max_iterations, residual_threshold, stop_on_repeat, a) for a, b in chunks]
    )


def _encode_chunk(
    x_ND: Tensor,
    w_dec_CD: Tensor,
    max_iterations: int,
    residual_threshold: float,
    stop_on_repeat: bool,
    first_row: int,
) -> SparseRows:
    latent_NI = torch.zeros(len(x_ND), min(FIRST_STEPS, max_iterations), dtype=torch.int64, device=x_ND.device)
    value_NI = torch.zeros(latent_NI.shape, device=x_ND.device)
    token_M = torch.arange(len(x_ND), device=x_ND.device)
    residual_MD = x_ND.float()
    for step in range(max_iterations):
        if step == latent_NI.shape[1]:
            more = min(step, max_iterations - step)
            latent_NI, value_NI = pad(latent_NI, (0, more)), pad(value_NI, (0, more))
        best_M, latent_M, wrong_M = _largest(residual_MD, w_dec_CD)
        if wrong_M.any():
            raise nonfinite_row(first_row + int(token_M[wrong_M][0]))
        row_MD = w_dec_CD[latent_M].float()
        # Not the product of the tile, whose rounding may change with every token that leaves.
        value_M = torch.where(best_M > 0, (residual_MD * row_MD).sum(dim=1).relu(), 0.0)
        repeated_M = _add(latent_NI, value_NI, token_M, latent_M, value_M, step)
        residual_MD = residual_MD - value_M[:, None] * row_MD
        going_M = (value_M > 0) & ~(residual_MD.norm(dim=1) < residual_threshold)
        if stop_on_repeat:
            going_M &= ~repeated_M
        if not going_M.all():
            token_M, residual_MD = token_M[going_M], residual_MD[going_M]
        if len(token_M) == 0:
            break
    return _rows(latent_NI, value_NI, first_row)


def _largest(residual_MD: Tensor, w_dec_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest product of each row, its latent, and whether one of the products is NaN or +Inf, [M] each."""
    best_M = torch.full((len(residual_MD),), -torch.inf, device=residual_MD.device)
    latent_M = torch.zeros(len(residual_MD), dtype=torch.int64, device=residual_MD.device)
    wrong_M = torch.zeros(len(residual_MD), dtype=torch.bool, device=residual_MD.device)
    for first, u_MT in preactivation_tiles(residual_MD, w_dec_CD, tile_width(len(residual_MD), w_dec_CD)):
        # max promises the first of equals, and gives NaN wherever there is one.
        value_M, offset_M = u_MT.max(dim=1)
        wrong_M |= torch.isnan(value_M) | (value_M == torch.inf)
        larger_M = value_M > best_M  # an equal one of an earlier tile stays: it is the smaller latent
        best_M = torch.where(larger_M, value_M, best_M)
        latent_M = torch.where(larger_M, offset_M + first, latent_M)
    return best_M, latent_M, wrong_M


def _add(latent_NI: Tensor, value_NI: Tensor, token_M: Tensor, latent_M: Tensor, value_M: Tensor, step: int) -> Tensor:
    """Note the latents of a step, and add each value where its latent was noted first; bool [M], whether before."""
    latent_NI[token_M, step] = latent_M
    first_M = (latent_NI[token_M, : step + 1] == latent_M[:, None]).to(torch.uint8).argmax(dim=1)
    value_NI[token_M, first_M] += value_M
    return first_M < step


def _rows(latent_NI: Tensor, value_NI: Tensor, first_row: int) -> SparseRows:
    wrong_N = ~torch.isfinite(value_NI).all(dim=1)
    if wrong_N.any():
        raise nonfinite_row(first_row + int(wrong_N.to(torch.uint8).argmax()))
    latent_NI, order_NI = latent_NI.sort(dim=1)
    value_NI = value_NI.gather(1, order_NI)
    kept_NI = value_NI > 0
    indptr = torch.zeros(len(latent_NI) + 1, dtype=torch.int64, device=latent_NI.device)
    torch.cumsum(kept_NI.sum(dim=1), dim=0, out=indptr[1:])
    return SparseRows(indptr, latent_NI[kept_NI].to(torch.int32), value_NI[kept_NI])
