"""Hot latents apart: those that fire on many tokens are columns of a dense product, the others are gathered.

A dense product computes a latent for all N tokens at the speed of a matrix product; gathering reads its decoder row
once for each token that needs it. Above some share of the tokens the product should win: on a GPU by calculation from
half a percent up, not measured. On the CPU, measured at 16k latents, it never paid: fp32 weights took a third more time
with no latent hot, and more with every one that was; bf16 weights broke even at best.

Letters: N tokens, D model width, C latents, H hot latents, T latents of a tile, nnz active pairs.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend
from gradsae_kernels.contracts import ContractError
from gradsae_kernels.sparse_rows import SparseRows, keep_entries, row_of_entry

Project = Callable[[SparseRows, Tensor, Tensor], Tensor]

TILE_ELEMENTS = 2**22  # 16 MB of fp32 for a tile's decoder rows and 16 for its products; half where types are widened


def check_hot_share(hot_share: float | None, chosen: Backend) -> None:
    """None, or a number from 0 up to but not including 1, for a backend that gathers."""
    if hot_share is None:
        return
    if isinstance(hot_share, bool) or not isinstance(hot_share, int | float) or not 0 <= hot_share < 1:
        raise ContractError(
            f"hot_share: got {hot_share!r}; expected a share of the tokens, 0 <= share < 1, or None to gather all"
        )
    if chosen is Backend.REFERENCE:
        raise ContractError(
            f"hot_share: got {hot_share} with backend {chosen}, which multiplies all latents densely; leave it out"
        )


def project_hot_apart(
    project_cold: Project, rows: SparseRows, grad_ND: Tensor, w_dec_CD: Tensor, hot_share: float
) -> Tensor:
    """The contract of `project`; the pairs of latents that are not hot go through project_cold.

    Scratch beside O(nnz + C) numbers: 32 MB at most.
    """
    fires_C = torch.bincount(rows.indices, minlength=len(w_dec_CD))
    hot_C = fires_C > hot_share * len(grad_ND)
    cold = ~hot_C[rows.indices]
    projections = torch.empty(len(cold), device=grad_ND.device)
    projections[cold] = project_cold(keep_entries(rows, cold), grad_ND, w_dec_CD)
    for pairs, hot_values in _dense_tiles(rows, (~cold).nonzero()[:, 0], hot_C, grad_ND, w_dec_CD):
        projections[pairs] = hot_values
    return projections


def _dense_tiles(
    rows: SparseRows, hot_pairs: Tensor, hot_C: Tensor, grad_ND: Tensor, w_dec_CD: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (pairs, their projections) until all hot pairs have come."""
    num_tokens, width = grad_ND.shape
    hot = hot_C.nonzero()[:, 0]
    column = (hot_C.cumsum(dim=0) - 1)[rows.indices[hot_pairs]]
    token = row_of_entry(rows)[hot_pairs]
    room = TILE_ELEMENTS if _multiply_as_they_are(grad_ND, w_dec_CD) else TILE_ELEMENTS // 2
    tile = max(1, room // width)
    chunk = max(1, room // max(width, min(tile, len(hot))))
    for first in range(0, len(hot), tile):
        w_TD = w_dec_CD.index_select(0, hot[first : first + tile])
        inside = ((column >= first) & (column < first + tile)).nonzero()[:, 0]
        starts = torch.arange(0, num_tokens + chunk, chunk, device=token.device)
        bounds = torch.searchsorted(token[inside], starts).tolist()
        for start, begin, end in zip(range(0, num_tokens, chunk), bounds[:-1], bounds[1:], strict=True):
            taken = inside[begin:end]
            product_NT = _multiply(grad_ND[start : start + chunk], w_TD)
            yield hot_pairs[taken], product_NT[token[taken] - start, column[taken] - first]


def _multiply(grad_ND: Tensor, w_TD: Tensor) -> Tensor:
    """float32 grad @ w.T; a CUDA library multiplies two half-precision matrices as they are and sums in fp32."""
    if not _multiply_as_they_are(grad_ND, w_TD):
        return grad_ND.to(torch.float32) @ w_TD.to(torch.float32).T
    if grad_ND.dtype == torch.float32:
        return grad_ND @ w_TD.T
    return torch.mm(grad_ND, w_TD.T, out_dtype=torch.float32)


def _multiply_as_they_are(grad_ND: Tensor, w_CD: Tensor) -> bool:
    return grad_ND.dtype == w_CD.dtype and (grad_ND.is_cuda or grad_ND.dtype == torch.float32)
