"""Influence sums of whole documents: one number for each document and each latent that was active in it.

Letters: N tokens, S documents, D model width, C latents, nnz active pairs, G groups (pairs of one document and latent).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.contracts import (
    check_document_ptr,
    check_row_count,
    check_rows,
    check_sparse,
    check_vector,
    check_weights,
)
from gradsae_kernels.project.reference import project_reference
from gradsae_kernels.project.tiled import project_tiled
from gradsae_kernels.sparse_rows import SparseRows, from_entries, row_of_entry


@torch.no_grad()
def project_documents(
    rows: SparseRows,
    grad_ND: Tensor,
    w_dec_CD: Tensor,
    document_ptr: Tensor,
    *,
    token_weight_N: Tensor | None = None,
    backend: Backend = Backend.AUTO,
) -> SparseRows:
    """One row per document, latents ascending: sum over its tokens n of weight[n] * value[n, c] * <grad[n], w_dec[c]>.

    Document s is the tokens document_ptr[s]:document_ptr[s+1]; document_ptr is int64 [S+1], begins at 0, never falls
    and ends at N; a document may be empty. token_weight is a float [N], 1 unless given. A latent has an entry in a
    document where it was active there and its sum is not exactly zero: values of SparseRows never are.

    Sums are fp32, token after token, without atomics: the same call gives the same bits, and with Triton, or on the
    CPU, a document's row depends on that document alone. Triton sums the weighted gradients first and takes one inner
    product per document and latent; the others sum the products of single tokens. The result carries no graph.
    Raises ContractError, and BackendUnavailable for a backend that the device does not have.

    >>> rows = SparseRows(torch.tensor([0, 1, 2]), torch.tensor([1, 1], dtype=torch.int32), torch.tensor([5.0, 1.0]))
    >>> project_documents(rows, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.eye(2), torch.tensor([0, 2])).values
    tensor([14.])
    """
    check_rows("grad_ND", grad_ND)
    check_weights("w_dec_CD", w_dec_CD, grad_ND)
    check_sparse(rows, len(w_dec_CD), grad_ND)
    check_row_count("grad_ND", rows, grad_ND)
    check_vector("rows.values", rows.values, len(rows.indices), grad_ND)
    check_document_ptr(document_ptr, len(grad_ND), grad_ND)
    if token_weight_N is not None:
        check_vector("token_weight_N", token_weight_N, len(grad_ND), grad_ND)
    chosen = choose_backend(grad_ND.device, backend)
    coefficients = _coefficients(rows, token_weight_N)
    run = {Backend.REFERENCE: _sum_reference, Backend.TILED: _sum_tiled, Backend.TRITON: _sum_triton}[chosen]
    return run(rows, coefficients, grad_ND.detach(), w_dec_CD.detach(), document_ptr)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Pairs of the same document and latent, documents rising, then latents; tokens rise inside a group."""

    pairs: Tensor  # int64 [nnz]: the pairs, group after group
    starts: Tensor  # int64 [G+1]: group g is pairs[starts[g]:starts[g+1]]
    documents: Tensor  # int64 [G]
    latents: Tensor  # int32 [G]


def group_pairs(rows: SparseRows, document_ptr: Tensor, num_latents: int) -> Groups:
    """Sort the pairs by document and latent; a stable sort keeps tokens in order."""
    pairs_of_document = rows.indptr[document_ptr].diff()
    document = torch.arange(len(pairs_of_document), device=document_ptr.device)
    document = torch.repeat_interleave(document, pairs_of_document, output_size=len(rows.indices))
    keys, pairs = torch.sort(document * num_latents + rows.indices, stable=True)
    distinct, counts = torch.unique_consecutive(keys, return_counts=True)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)])
    latents = (distinct % num_latents).to(torch.int32)
    return Groups(pairs=pairs, starts=starts, documents=distinct // num_latents, latents=latents)


def _coefficients(rows: SparseRows, token_weight_N: Tensor | None) -> Tensor:
    """float32 [nnz]: weight * value of every pair."""
    if token_weight_N is None:
        return rows.values
    return rows.values * token_weight_N.detach().to(torch.float32)[row_of_entry(rows)]


def _sum_reference(
    rows: SparseRows, coefficients: Tensor, grad_ND: Tensor, w_dec_CD: Tensor, document_ptr: Tensor
) -> SparseRows:
    influence_NC = torch.zeros(len(grad_ND), len(w_dec_CD), device=grad_ND.device)
    projections = project_reference(rows, grad_ND, w_dec_CD)
    influence_NC[row_of_entry(rows), rows.indices.long()] = coefficients * projections
    sums_SC = torch.zeros(len(document_ptr) - 1, len(w_dec_CD), device=grad_ND.device)
    for s, (begin, end) in enumerate(zip(document_ptr[:-1].tolist(), document_ptr[1:].tolist(), strict=True)):
        sums_SC[s] = influence_NC[begin:end].sum(dim=0)
    document, latent = sums_SC.nonzero(as_tuple=True)
    return from_entries(document, latent.to(torch.int32), sums_SC[document, latent], len(sums_SC))


def _sum_tiled(
    rows: SparseRows, coefficients: Tensor, grad_ND: Tensor, w_dec_CD: Tensor, document_ptr: Tensor
) -> SparseRows:
    groups = group_pairs(rows, document_ptr, len(w_dec_CD))
    influence = (coefficients * project_tiled(rows, grad_ND, w_dec_CD))[groups.pairs]
    # Atomic additions of index_add would make a GPU result vary from run to run. The lengths need no check ("unsafe").
    sums = torch.segment_reduce(influence, "sum", lengths=groups.starts.diff(), initial=0.0, unsafe=True)
    return _rows_of_documents(groups, sums, len(document_ptr) - 1)


def _sum_triton(
    rows: SparseRows, coefficients: Tensor, grad_ND: Tensor, w_dec_CD: Tensor, document_ptr: Tensor
) -> SparseRows:
    from gradsae_kernels.project.triton_kernel import influence_triton

    groups = group_pairs(rows, document_ptr, len(w_dec_CD))
    tokens = row_of_entry(rows)[groups.pairs]
    sums = influence_triton(groups.starts, groups.latents, tokens, coefficients[groups.pairs], grad_ND, w_dec_CD)
    return _rows_of_documents(groups, sums, len(document_ptr) - 1)


def _rows_of_documents(groups: Groups, sums: Tensor, num_documents: int) -> SparseRows:
    """float32 [G] as rows, without exact zeros; NaN is kept, so that a broken weight shows."""
    kept = sums != 0
    document_edges = torch.arange(num_documents + 1, device=sums.device)
    indptr = torch.searchsorted(groups.documents[kept], document_edges)
    return SparseRows(indptr, groups.latents[kept], sums[kept])
