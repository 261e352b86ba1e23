"""The oracle of `encode_topk`: a dense product and a full stable sort of every row.

Letters: N tokens, D model width, C latents, K = k.
"""

import torch
from torch import Tensor

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.sparse_rows import SparseRows


def encode_topk_reference(x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, k: int, *, signed: bool) -> SparseRows:
    """Sort, keep k, drop what is not positive, back to the order of latents; ContractError for a row not finite."""
    u_NC = x_ND.float() @ w_enc_CD.float().T + bias_C
    key_NC = u_NC.abs() if signed else u_NC
    order_NC = torch.sort(key_NC, dim=1, descending=True, stable=True).indices
    latent_NK = order_NC[:, :k].sort(dim=1).values
    value_NK = u_NC.gather(1, latent_NK)
    kept_NK = key_NC.gather(1, latent_NK) > 0
    wrong_N = torch.isnan(u_NC).any(dim=1) | (kept_NK & ~torch.isfinite(value_NK)).any(dim=1)
    if wrong_N.any():
        raise nonfinite_row(int(wrong_N.to(torch.uint8).argmax()))
    indptr = torch.zeros(len(x_ND) + 1, dtype=torch.int64, device=x_ND.device)
    indptr[1:] = kept_NK.sum(dim=1).cumsum(dim=0)
    return SparseRows(indptr, latent_NK[kept_NK].to(torch.int32), value_NK[kept_NK])
