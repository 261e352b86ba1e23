"""The oracle of `encode_matching_pursuit`: dense activations, and the support of two steps compared as a whole.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.sparse_rows import SparseRows


def encode_matching_pursuit_reference(
    x_ND: Tensor, w_dec_CD: Tensor, max_iterations: int, residual_threshold: float, stop_on_repeat: bool
) -> SparseRows:
    """Step all tokens together, those that are done by nothing; ContractError for a row not finite."""
    w_CD, residual_ND = w_dec_CD.float(), x_ND.float()
    a_NC = torch.zeros(len(x_ND), len(w_CD), device=x_ND.device)
    done_N = torch.zeros(len(x_ND), dtype=torch.bool, device=x_ND.device)
    for _ in range(max_iterations):
        u_NC = residual_ND @ w_CD.T
        _refuse_nonfinite((torch.isnan(u_NC) | (u_NC == torch.inf)).any(dim=1) & ~done_N)
        largest_NC = (u_NC == u_NC.amax(dim=1, keepdim=True)) & (u_NC > 0) & ~done_N[:, None]
        taken_NC = largest_NC & (largest_NC.cumsum(dim=1) == 1)
        row_ND = torch.where(taken_NC.any(dim=1, keepdim=True), w_CD[taken_NC.to(torch.uint8).argmax(dim=1)], 0.0)
        value_N1 = (residual_ND * row_ND).sum(dim=1, keepdim=True).relu()
        before_NC, a_NC = a_NC != 0, a_NC + torch.where(taken_NC, value_N1, 0.0)
        residual_ND = residual_ND - value_N1 * row_ND
        if stop_on_repeat:
            done_N |= ((a_NC != 0) == before_NC).all(dim=1)
        done_N |= residual_ND.norm(dim=1) < residual_threshold
        if done_N.all():
            break
    _refuse_nonfinite(~torch.isfinite(a_NC).all(dim=1))
    active_NC = a_NC != 0
    indptr = torch.zeros(len(x_ND) + 1, dtype=torch.int64, device=x_ND.device)
    indptr[1:] = active_NC.sum(dim=1).cumsum(dim=0)
    return SparseRows(indptr, active_NC.nonzero()[:, 1].to(torch.int32), a_NC[active_NC])


def _refuse_nonfinite(wrong_N: Tensor) -> None:
    if wrong_N.any():
        raise nonfinite_row(int(wrong_N.to(torch.uint8).argmax()))
