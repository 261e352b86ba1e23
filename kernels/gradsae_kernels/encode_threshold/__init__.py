"""Encode by threshold: ReLU, JumpReLU, Gated, BatchTopK and Matryoshka at inference, Bi-JumpReLU.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.contracts import ContractError, check_capacity, check_rows, check_vector, check_weights
from gradsae_kernels.emit.plan import EmitPlan
from gradsae_kernels.encode_threshold.fused import encode_threshold_fused
from gradsae_kernels.encode_threshold.reference import encode_threshold_reference
from gradsae_kernels.encode_threshold.rule import ThresholdRule
from gradsae_kernels.encode_threshold.tiled import encode_threshold_tiled
from gradsae_kernels.sparse_rows import SparseRows

DEFAULT_CAPACITY = 256


@torch.no_grad()
def encode_threshold(
    x_ND: Tensor,
    w_enc_CD: Tensor,
    bias_C: Tensor,
    threshold_C: Tensor,
    *,
    negative_threshold_C: Tensor | None = None,
    scale_C: Tensor | None = None,
    offset_C: Tensor | None = None,
    backend: Backend = Backend.AUTO,
    plan: EmitPlan | None = None,
    capacity: int = DEFAULT_CAPACITY,
) -> SparseRows:
    """Active latents of each row of x, without a dense [N, C] (backend REFERENCE makes one).

    With u = x @ w_enc.T + bias in fp32, a latent is active iff u > threshold (strict) and its value is
    relu(scale * u + offset), scale 1 and offset 0 unless given. With `negative_threshold_C` it is active iff
    u > threshold or u < -negative_threshold, and its value is u. Exact zeros are dropped. The result carries no graph.

    x is any float dtype; weights fp32, bf16 or fp16, contiguous, one row per latent. Only backend TRITON looks at
    `plan` (None: the table's, see `choose_plan`) and `capacity`, the active latents of a token that there is room for
    at the first try: a token with more is computed again, so that it changes the time and not the result. Raises
    ContractError, and BackendUnavailable for a backend that the device does not have.

    >>> x, w, zero = torch.tensor([[1.0, -2.0]]), torch.eye(2), torch.zeros(2)
    >>> encode_threshold(x, w, zero, zero).indices.tolist()
    [0]
    """
    check_rows("x_ND", x_ND)
    check_weights("w_enc_CD", w_enc_CD, x_ND)
    if negative_threshold_C is not None and (scale_C is not None or offset_C is not None):
        raise ContractError(
            "negative_threshold_C: got it together with scale_C or offset_C; expected one or the other; "
            "a two-sided SAE has no value map, so drop scale and offset"
        )
    for name, vector in (("bias_C", bias_C), ("scale_C", scale_C), ("offset_C", offset_C)):
        if vector is not None:
            check_vector(name, vector, len(w_enc_CD), x_ND)
    for name, vector in (("threshold_C", threshold_C), ("negative_threshold_C", negative_threshold_C)):
        if vector is not None:
            check_vector(name, vector, len(w_enc_CD), x_ND, allow_inf=True)
    rule = ThresholdRule.of(bias_C, threshold_C, negative_threshold_C, scale_C, offset_C)
    check_capacity(capacity)
    chosen = choose_backend(x_ND.device, backend)
    if chosen is Backend.REFERENCE:
        return encode_threshold_reference(x_ND, w_enc_CD, rule)
    if chosen is Backend.TRITON:
        return encode_threshold_fused(x_ND.detach(), w_enc_CD.detach(), rule, plan, capacity)
    return encode_threshold_tiled(x_ND.detach(), w_enc_CD.detach(), rule)
