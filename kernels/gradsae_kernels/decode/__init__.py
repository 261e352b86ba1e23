"""Decode sparse rows: the reconstruction, for the spliced mode.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.contracts import check_sparse, check_vector, check_weights
from gradsae_kernels.decode.reference import decode_reference
from gradsae_kernels.decode.tiled import decode_tiled
from gradsae_kernels.sparse_rows import SparseRows


@torch.no_grad()
def decode(
    rows: SparseRows, w_dec_CD: Tensor, bias_D: Tensor | None = None, *, backend: Backend = Backend.AUTO
) -> Tensor:
    """float32 [N, D]: bias + sum over the active latents c of value * w_dec[c].

    Sums are fp32, from the bias on in the order of latents. With Triton, and on the CPU, a row depends on that row
    alone: splitting the rows changes no bit. The result carries no graph. Weights fp32, bf16 or fp16, contiguous, one
    row per latent; Triton reads them as they lie, the others widen a few MB at a time. Raises ContractError, and
    BackendUnavailable for a backend that the device does not have.

    >>> rows = SparseRows(torch.tensor([0, 1]), torch.tensor([1], dtype=torch.int32), torch.tensor([5.0]))
    >>> decode(rows, torch.eye(2), torch.ones(2))
    tensor([[1., 6.]])
    """
    check_weights("w_dec_CD", w_dec_CD, w_dec_CD)
    check_sparse(rows, len(w_dec_CD), w_dec_CD)
    check_vector("rows.values", rows.values, len(rows.indices), w_dec_CD)
    if bias_D is not None:
        check_vector("bias_D", bias_D, w_dec_CD.shape[1], w_dec_CD)
        bias_D = bias_D.detach().to(torch.float32)
    chosen = choose_backend(w_dec_CD.device, backend)
    w_dec_CD = w_dec_CD.detach()
    if chosen is Backend.REFERENCE:
        return decode_reference(rows, w_dec_CD, bias_D)
    if chosen is Backend.TILED:
        return decode_tiled(rows, w_dec_CD, bias_D)
    from gradsae_kernels.decode.triton_kernel import decode_triton

    return decode_triton(rows, w_dec_CD, bias_D)
