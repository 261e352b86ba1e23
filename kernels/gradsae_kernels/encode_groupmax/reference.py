"""The oracle of `encode_groupmax`: a dense product, and the first largest of every group.

Letters: N tokens, D model width, C latents, G groups, S latents of a group.
"""

import torch
from torch import Tensor

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.sparse_rows import SparseRows


def encode_groupmax_reference(x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, groups: int) -> SparseRows:
    """Compare each latent with its group's maximum, keep the first equal one; ContractError for a row not finite."""
    u_NC = x_ND.float() @ w_enc_CD.float().T + bias_C
    u_NGS = u_NC.unflatten(1, (groups, -1))
    largest_NGS = u_NGS == u_NGS.amax(dim=2, keepdim=True)
    first_NGS = largest_NGS & (largest_NGS.cumsum(dim=2) == 1)
    kept_NC = (first_NGS & (u_NGS > 0)).flatten(1)
    wrong_N = torch.isnan(u_NC).any(dim=1) | (kept_NC & ~torch.isfinite(u_NC)).any(dim=1)
    if wrong_N.any():
        raise nonfinite_row(int(wrong_N.to(torch.uint8).argmax()))
    indptr = torch.zeros(len(x_ND) + 1, dtype=torch.int64, device=x_ND.device)
    indptr[1:] = kept_NC.sum(dim=1).cumsum(dim=0)
    return SparseRows(indptr, kept_NC.nonzero()[:, 1].to(torch.int32), u_NC[kept_NC])
