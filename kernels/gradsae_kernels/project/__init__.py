"""Project the gradient on the decoder rows of active latents.

Letters: N tokens, D model width, C latents, nnz active pairs.
"""

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.contracts import check_row_count, check_rows, check_sparse, check_weights
from gradsae_kernels.project.reference import project_reference
from gradsae_kernels.project.tiled import project_tiled
from gradsae_kernels.sparse_rows import SparseRows


@torch.no_grad()
def project(rows: SparseRows, grad_ND: Tensor, w_dec_CD: Tensor, *, backend: Backend = Backend.AUTO) -> Tensor:
    """float32 [nnz]: p = <grad[n], w_dec[c]> for every active pair (n, c), in the order of the pairs.

    Sums are fp32; on the CPU a pair's sum depends on its row alone, so that splitting the rows changes no bit. The
    result carries no graph. grad is any float dtype; weights fp32, bf16 or fp16, contiguous, one row per latent.
    Raises ContractError, and BackendUnavailable for a backend that the device does not have.

    >>> rows = SparseRows(torch.tensor([0, 1]), torch.tensor([1], dtype=torch.int32), torch.tensor([5.0]))
    >>> project(rows, torch.tensor([[1.0, 2.0]]), torch.eye(2))
    tensor([2.])
    """
    check_rows("grad_ND", grad_ND)
    check_weights("w_dec_CD", w_dec_CD, grad_ND)
    check_sparse(rows, len(w_dec_CD), grad_ND)
    check_row_count("grad_ND", rows, grad_ND)
    chosen = choose_backend(grad_ND.device, backend)
    run = project_reference if chosen is Backend.REFERENCE else project_tiled
    return run(rows, grad_ND.detach(), w_dec_CD.detach())
