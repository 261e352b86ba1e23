"""Encode by the largest of each group: GroupMax SAEs.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, BackendUnavailable
from gradsae_kernels.contracts import ContractError, check_rows, check_vector, check_weights
from gradsae_kernels.encode_groupmax.reference import encode_groupmax_reference
from gradsae_kernels.encode_groupmax.tiled import encode_groupmax_tiled
from gradsae_kernels.sparse_rows import SparseRows


@torch.no_grad()
def encode_groupmax(
    x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, groups: int, *, backend: Backend = Backend.AUTO
) -> SparseRows:
    """The largest u = x @ w_enc.T + bias of each of `groups` runs of C / groups neighbouring latents, where positive.

    Equal ones go to the smaller latent id; values are u in fp32. A row has one active latent per group at most. The
    result carries no graph. Memory of the tiled backend: that of the result, one number per row and group, and scratch.

    x is any float dtype; weights fp32, bf16 or fp16, contiguous, one row per latent. The tiled backend is a library's
    product and a maximum and runs on every device that holds data: AUTO takes it everywhere. Raises ContractError, and
    BackendUnavailable for the backend TRITON, which this operator does not have.

    >>> x, w = torch.tensor([[1.0, 3.0, -3.0, -5.0]]), torch.eye(4)
    >>> encode_groupmax(x, w, torch.zeros(4), 2).indices.tolist()
    [1]
    """
    check_rows("x_ND", x_ND)
    check_weights("w_enc_CD", w_enc_CD, x_ND)
    check_vector("bias_C", bias_C, len(w_enc_CD), x_ND)
    _check_groups(groups, len(w_enc_CD))
    x_ND, w_enc_CD, bias_C = x_ND.detach(), w_enc_CD.detach(), bias_C.detach().to(torch.float32).contiguous()
    if Backend(backend) is Backend.TRITON:
        raise BackendUnavailable(f"backend {backend}: encode_groupmax has no fused kernel; ask for {Backend.TILED}")
    encode = encode_groupmax_reference if Backend(backend) is Backend.REFERENCE else encode_groupmax_tiled
    return encode(x_ND, w_enc_CD, bias_C, groups)


def _check_groups(groups: int, num_latents: int) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or num_latents % groups:
        raise ContractError(
            f"groups: got {groups!r}; expected a positive integer that divides the {num_latents} latents"
        )
