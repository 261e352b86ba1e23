"""Encode by rank: TopK and AbsTopK SAEs.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.contracts import check_k, check_rows, check_vector, check_weights
from gradsae_kernels.emit.plan import EmitPlan
from gradsae_kernels.encode_topk.fused import encode_topk_fused
from gradsae_kernels.encode_topk.reference import encode_topk_reference
from gradsae_kernels.encode_topk.tiled import encode_topk_tiled
from gradsae_kernels.sparse_rows import SparseRows


@torch.no_grad()
def encode_topk(
    x_ND: Tensor,
    w_enc_CD: Tensor,
    bias_C: Tensor,
    k: int,
    *,
    signed: bool = False,
    backend: Backend = Backend.AUTO,
    plan: EmitPlan | None = None,
) -> SparseRows:
    """The k largest positive u = x @ w_enc.T + bias of each row (`signed`: the k of largest |u|, none of them zero).

    Fewer than k where fewer are positive. Equal ones go to the smaller latent id; rows come out ascending by latent,
    values are u in fp32. The result carries no graph. Memory of the tiled backend: that of the result, and scratch.

    x is any float dtype; weights fp32, bf16 or fp16, contiguous, one row per latent. Only backend TRITON looks at
    `plan` (None: the table's, see `choose_plan`). Raises ContractError, and BackendUnavailable for a backend that the
    device does not have.

    >>> x, w = torch.tensor([[1.0, 3.0, 3.0, -5.0]]), torch.eye(4)
    >>> encode_topk(x, w, torch.zeros(4), 1).indices.tolist(), encode_topk(x, w, torch.zeros(4), 1, signed=True).values
    ([1], tensor([-5.]))
    """
    check_rows("x_ND", x_ND)
    check_weights("w_enc_CD", w_enc_CD, x_ND)
    check_vector("bias_C", bias_C, len(w_enc_CD), x_ND)
    check_k(k, len(w_enc_CD))
    x_ND, w_enc_CD, bias_C = x_ND.detach(), w_enc_CD.detach(), bias_C.detach().to(torch.float32).contiguous()
    chosen = choose_backend(x_ND.device, backend)
    if chosen is Backend.TRITON:
        return encode_topk_fused(x_ND, w_enc_CD, bias_C, k, signed=signed, plan=plan)
    encode = encode_topk_reference if chosen is Backend.REFERENCE else encode_topk_tiled
    return encode(x_ND, w_enc_CD, bias_C, k, signed=signed)
