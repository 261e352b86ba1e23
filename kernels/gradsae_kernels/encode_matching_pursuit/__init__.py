"""Encode one latent after another, each from what those before it left over: matching pursuit SAEs.

Letters: N tokens, D model width, C latents.
"""

import math

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, BackendUnavailable
from gradsae_kernels.contracts import ContractError, check_rows, check_weights
from gradsae_kernels.encode_matching_pursuit.reference import encode_matching_pursuit_reference
from gradsae_kernels.encode_matching_pursuit.tiled import encode_matching_pursuit_tiled
from gradsae_kernels.sparse_rows import SparseRows


@torch.no_grad()
def encode_matching_pursuit(
    x_ND: Tensor,
    w_dec_CD: Tensor,
    max_iterations: int,
    *,
    residual_threshold: float = 0.0,
    stop_on_repeat: bool = True,
    backend: Backend = Backend.AUTO,
) -> SparseRows:
    """Start from the residual r = x; a step takes the latent of largest r · w_dec[c], where that is positive.

    The product is added to the latent's value, and so much of its row is taken off r. A token goes on until nothing is
    positive, `max_iterations` steps are done, a step took a latent that was active before (`stop_on_repeat`: the step
    still counts), or ‖r‖ < `residual_threshold` after a step. The first step is taken whatever the norm of x. So values
    are positive, and a latent is active iff it was taken at least once. Equal products go to the smaller latent id.

    Nothing scales the rows: at norms above √2 a step may leave a larger residual than it found. An input bias is
    subtracted from x before. Memory of the tiled backend: that of the result, one number and one latent per row and
    step of a chunk of tokens, and scratch; it is a library's products on every device that holds data, and AUTO takes
    it everywhere. The result carries no graph.

    x is any float dtype; weights fp32, bf16 or fp16, contiguous, one row per latent. Raises ContractError, and
    BackendUnavailable for the backend TRITON, which this operator does not have. Source: Costa et al. 2025, "From Flat
    to Hierarchical: Extracting Sparse Representations with Matching Pursuit"; rules for stopping as in SAELens 6.54.

    >>> x, w = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    >>> rows = encode_matching_pursuit(x, w, 3)  # x @ w.T is 1, 2.6, 3; once the last is taken off, 1, 0.8, 0
    >>> rows.indices.tolist(), rows.values.tolist()
    ([0, 2], [1.0, 3.0])
    """
    check_rows("x_ND", x_ND)
    check_weights("w_dec_CD", w_dec_CD, x_ND)
    _check_stops(max_iterations, residual_threshold)
    if Backend(backend) is Backend.TRITON:
        raise BackendUnavailable(
            f"backend {backend}: encode_matching_pursuit has no fused kernel; ask for {Backend.TILED}"
        )
    reference = Backend(backend) is Backend.REFERENCE
    encode = encode_matching_pursuit_reference if reference else encode_matching_pursuit_tiled
    return encode(x_ND.detach(), w_dec_CD.detach(), max_iterations, residual_threshold, stop_on_repeat)


def _check_stops(max_iterations: int, residual_threshold: float) -> None:
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise ContractError(f"max_iterations: got {max_iterations!r}; expected an integer of at least 1")
    if not 0 <= residual_threshold < math.inf:
        raise ContractError(f"residual_threshold: got {residual_threshold!r}; expected 0 (never) or a positive number")
