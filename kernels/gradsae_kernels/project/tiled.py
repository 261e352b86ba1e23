"""The portable fast path of `project`: one inner product per active pair, decoder rows fetched where they lie.

The rival, grad @ w_dec.T, does C products per token to use L0 of them. A gradient row stays in the first cache while
the decoder rows of its latents pass by. Half-precision decoder rows are widened a few MB at a time.

Letters: N tokens, D model width, C latents, P pairs of a piece.
"""

import torch
from torch import Tensor

from gradsae_kernels.compiled import runs_compiled
from gradsae_kernels.gather import pair_pieces, widened
from gradsae_kernels.sparse_rows import SparseRows, row_of_entry
from gradsae_kernels.threads import run_shards, shard_rows


def project_tiled(rows: SparseRows, grad_ND: Tensor, w_dec_CD: Tensor) -> Tensor:
    """The contract of `project`."""
    grad_ND = grad_ND.to(torch.float32).contiguous()
    projections = torch.empty(len(rows.indices), device=grad_ND.device)
    if not runs_compiled(grad_ND.device):
        return _project_torch(rows, grad_ND, w_dec_CD, projections)
    from gradsae_kernels.project.numba_kernel import project_rows

    shards = shard_rows(len(grad_ND))
    for begin, indptr, indices, w_CD in widened(rows, w_dec_CD):
        arrays = (part.numpy() for part in (indptr, indices, grad_ND, w_CD, projections[begin:]))
        run_shards(project_rows, shards, *arrays)
    return projections


def _project_torch(rows: SparseRows, grad_ND: Tensor, w_dec_CD: Tensor, projections: Tensor) -> Tensor:
    row = row_of_entry(rows)
    for begin, end in pair_pieces(len(row), grad_ND.shape[1]):
        w_PD = w_dec_CD.index_select(0, rows.indices[begin:end]).float()
        torch.sum(w_PD.mul_(grad_ND[row[begin:end]]), dim=1, out=projections[begin:end])
    return projections
