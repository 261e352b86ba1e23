"""Project the gradient on the decoder rows of active latents.

    project             one projection for each active pair
    project_documents   one influence sum for each document and latent

Letters: N tokens, D model width, C latents, nnz active pairs.
"""

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.contracts import check_row_count, check_rows, check_sparse, check_weights
from gradsae_kernels.project.documents import project_documents
from gradsae_kernels.project.hot_latents import check_hot_share, project_hot_apart
from gradsae_kernels.project.reference import project_reference
from gradsae_kernels.project.tiled import project_tiled
from gradsae_kernels.sparse_rows import SparseRows

__all__ = ["project", "project_documents"]


@torch.no_grad()
def project(
    rows: SparseRows,
    grad_ND: Tensor,
    w_dec_CD: Tensor,
    *,
    hot_share: float | None = None,
    backend: Backend = Backend.AUTO,
) -> Tensor:
    """float32 [nnz]: p = <grad[n], w_dec[c]> for every active pair (n, c), in the order of the pairs.

    Sums are fp32. With Triton, and on the CPU, a pair's sum depends on its gradient and decoder row alone: splitting
    the rows changes no bit. The result carries no graph. grad is any float dtype; weights fp32, bf16 or fp16,
    contiguous, one row per latent; Triton reads both as they lie, the others widen the weights a few MB at a time.

    hot_share: latents active on more than this share of the N tokens are multiplied as one dense product, which is
    cheaper where very few latents fire nearly always and the device multiplies much faster than it gathers. A value
    then depends, in its rounding, on which latents are hot in this call and on what the BLAS library makes of it.

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
    check_hot_share(hot_share, chosen)
    grad_ND, w_dec_CD = grad_ND.detach(), w_dec_CD.detach()
    if chosen is Backend.REFERENCE:
        return project_reference(rows, grad_ND, w_dec_CD)
    run = project_tiled
    if chosen is Backend.TRITON:
        from gradsae_kernels.project.triton_kernel import project_triton

        run = project_triton
    if hot_share is None:
        return run(rows, grad_ND, w_dec_CD)
    return project_hot_apart(run, rows, grad_ND, w_dec_CD, hot_share)
