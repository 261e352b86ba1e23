"""The ways to project and to decode; letters: N tokens, D model width, C latents, nnz active pairs, M documents."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.encoders import OUR_SCRATCH, why_not
from benchmarks.gpu.truth import check_documents, check_projections, check_reconstruction
from benchmarks.gpu.variant import Variant, unavailable
from benchmarks.gpu.workload import Workload
from gradsae_kernels import Backend, SparseRows, decode
from gradsae_kernels.project import project, project_documents
from gradsae_kernels.sparse_rows import row_of_entry

HOT_SHARE = 0.005  # of tokens: where a dense column becomes cheaper than fetching rows, by calculation


def projections(workload: Workload) -> Iterator[Variant]:
    """`project` against the dense gradient and the two sparse ways that torch has."""
    shape, rows, grad_ND, w_CD = workload.shape, workload.rows, workload.grad_ND, workload.w_dec_CD
    num_pairs = float(len(rows.indices))
    size = shape.dtype.itemsize
    # Every pair fetches its decoder row; gradient rows, ids and answers come and go once.
    gather_bytes = num_pairs * (shape.width * size + 8) + float(shape.tokens) * shape.width * size

    def variant(name: str, call: Callable[[], Any], **rest: Any) -> Variant:
        defaults = {
            "check": check_projections(workload),
            "flops": 2.0 * num_pairs * shape.width,
            "bytes_moved": gather_bytes,
        }
        return Variant(operator="project", name=name, call=call, **{**defaults, **rest})

    for suffix, hot_share in (("", None), (f", hot_share={HOT_SHARE}", HOT_SHARE)):
        if reason := why_not(grad_ND.device):
            yield unavailable("project", "Triton" + suffix, reason)
        else:
            call = partial(project, rows, grad_ND, w_CD, backend=Backend.TRITON, hot_share=hot_share)
            yield variant("Triton" + suffix, call, needs_bytes=OUR_SCRATCH, needs_seconds=10.0, is_ours=True)
    tiled = partial(project, rows, grad_ND, w_CD, backend=Backend.TILED)
    yield variant("portable torch, gather and sum", tiled, needs_bytes=OUR_SCRATCH, is_ours=True)
    yield variant(
        "dense gradient of all latents, then gather",
        partial(_dense_gradient, rows, grad_ND, w_CD),
        check=check_projections(workload, rounded=True),
        flops=shape.product_flops,
        bytes_moved=shape.operand_bytes + size * shape.dense_elements + num_pairs * (size + 8),
        needs_bytes=size * shape.dense_elements + 32 * num_pairs,
    )
    bag = partial(_embedding_bag, rows, grad_ND, w_CD)
    yield variant("torch, backward of embedding_bag's weights", bag, check=check_projections(workload, rounded=True))
    yield variant("torch, sampled_addmm", _sampled_addmm(rows, grad_ND, w_CD), needs_bytes=16 * num_pairs)


def document_sums(workload: Workload) -> Iterator[Variant]:
    """`project_documents`, and the same sums with the portable backend."""
    rows, grad_ND, w_CD = workload.rows, workload.grad_ND, workload.w_dec_CD
    num_pairs, size = float(len(rows.indices)), workload.shape.dtype.itemsize
    for name, backend in (("Triton", Backend.TRITON), ("portable torch, then sums", Backend.TILED)):
        if backend is Backend.TRITON and (reason := why_not(grad_ND.device)):
            yield unavailable("project_documents", name, reason)
            continue
        yield Variant(
            operator="project_documents",
            name=name,
            call=partial(project_documents, rows, grad_ND, w_CD, workload.document_ptr, backend=backend),
            check=check_documents(workload),
            flops=2.0 * num_pairs * workload.shape.width,
            # Of the ways to go through the pairs: one row fetched for each of them, of the gradient or of the decoder.
            bytes_moved=num_pairs * (workload.shape.width * size + 8),
            needs_bytes=OUR_SCRATCH,
            needs_seconds=10.0,
            is_ours=True,
        )


def decoders(workload: Workload) -> Iterator[Variant]:
    """`decode` against a dense product with activations that are dense already, and torch's embedding_bag."""
    shape, rows, w_CD = workload.shape, workload.rows, workload.w_dec_CD
    num_pairs, size = float(len(rows.indices)), shape.dtype.itemsize

    def variant(name: str, call: Callable[[], Any], **rest: Any) -> Variant:
        defaults = {
            "check": check_reconstruction(workload),
            "flops": 2.0 * num_pairs * shape.width,
            "bytes_moved": num_pairs * (shape.width * size + 8) + 4.0 * shape.tokens * shape.width,
        }
        return Variant(operator="decode", name=name, call=call, **{**defaults, **rest})

    if reason := why_not(w_CD.device):
        yield unavailable("decode", "Triton", reason)
    else:
        triton = partial(decode, rows, w_CD, backend=Backend.TRITON)
        yield variant("Triton", triton, needs_bytes=OUR_SCRATCH, is_ours=True)
    tiled = partial(decode, rows, w_CD, backend=Backend.TILED)
    yield variant("portable torch", tiled, needs_bytes=OUR_SCRATCH, is_ours=True)
    rounded = check_reconstruction(workload, rounded=True)
    yield variant("torch, embedding_bag", partial(_bag_sum, rows, w_CD), check=rounded)
    yield variant(
        "dense: scatter the activations, then multiply",
        partial(_dense_decode, rows, w_CD),
        check=rounded,
        flops=shape.product_flops,
        bytes_moved=shape.operand_bytes + 2 * size * shape.dense_elements,
        needs_bytes=size * shape.dense_elements,
    )


def _dense_gradient(rows: SparseRows, grad_ND: Tensor, w_CD: Tensor) -> Tensor:
    return (grad_ND @ w_CD.T)[row_of_entry(rows), rows.indices.long()]


def _embedding_bag(rows: SparseRows, grad_ND: Tensor, w_CD: Tensor) -> Tensor:
    """The backward kernel alone, which is a gather and dot; its forward is not needed."""
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return backward(grad_ND, w_CD, rows.indices.long(), rows.indptr[:-1], row_of_entry(rows), 0)


def _sampled_addmm(rows: SparseRows, grad_ND: Tensor, w_CD: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        pattern = torch.sparse_csr_tensor(
            rows.indptr,
            rows.indices.long(),
            torch.zeros(len(rows.indices), dtype=w_CD.dtype, device=w_CD.device),
            size=(len(grad_ND), len(w_CD)),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, grad_ND, w_CD.T, beta=0.0).values()

    return call


def _bag_sum(rows: SparseRows, w_CD: Tensor) -> Tensor:
    weights = rows.values.to(w_CD.dtype)
    return F.embedding_bag(rows.indices.long(), w_CD, rows.indptr[:-1], mode="sum", per_sample_weights=weights)


def _dense_decode(rows: SparseRows, w_CD: Tensor) -> Tensor:
    dense_NC = torch.zeros(len(rows.indptr) - 1, len(w_CD), dtype=w_CD.dtype, device=w_CD.device)
    dense_NC[row_of_entry(rows), rows.indices.long()] = rows.values.to(w_CD.dtype)
    return dense_NC @ w_CD
