"""Triton kernels of `project` and `project_documents`.

Letters: N tokens, D model width, C latents, nnz active pairs, P pairs of a program, G groups of pairs.

`project_kernel` takes P neighbouring pairs, whatever rows they belong to: a row of thousands of pairs is many programs,
and many short rows share one. A pair has one sum per column of a block, walks along D, and adds those sums up at the
end, so that its bits depend on nothing but the two vectors. A gradient row comes once per pair, but from the first
cache, where the pair before left it; decoder rows come from far.

`influence_kernel` takes one group, the pairs of one latent in one document: it first adds up coefficient * gradient in
registers, token after token, and multiplies by the decoder row once. sum of a * <g, w> is <sum of a * g, w>: a decoder
row is read once per document, and no number per pair is ever written.

Everything is widened to fp32 right after the load. Fused multiply-adds are spelled out, and the compiler may make no
others. Rows are addressed in 64 bits: C * D, N * D and nnz may pass 2**31.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.sparse_rows import SparseRows, row_of_entry

BLOCK_P = 32
PROJECT_BLOCK_D = 256
PROJECT_WARPS = 8
INFLUENCE_BLOCK_D = 1024
COLUMNS_PER_WARP = 256
UNROLL = 4
SMALLEST_BLOCK = 16


def project_triton(rows: SparseRows, grad_ND: Tensor, w_dec_CD: Tensor) -> Tensor:
    """The contract of `project`; weights and gradient are read in the type that they have."""
    num_pairs, width = len(rows.indices), w_dec_CD.shape[1]
    projections = torch.empty(num_pairs, device=w_dec_CD.device)
    if num_pairs == 0:
        return projections
    with torch.cuda.device_of(w_dec_CD):
        project_kernel[(triton.cdiv(num_pairs, BLOCK_P),)](
            row_of_entry(rows),
            rows.indices,
            grad_ND.contiguous(),
            w_dec_CD,
            projections,
            num_pairs,
            width,
            BLOCK_P=BLOCK_P,
            BLOCK_D=_block(width, PROJECT_BLOCK_D),
            num_warps=PROJECT_WARPS,
            enable_fp_fusion=False,
        )
    LAUNCHES["project"] += 1
    return projections


def influence_triton(
    starts: Tensor, latents: Tensor, tokens: Tensor, coefficients: Tensor, grad_ND: Tensor, w_dec_CD: Tensor
) -> Tensor:
    """float32 [G]: <sum of coefficient * grad[token] over the pairs starts[g]:starts[g+1], w_dec[latents[g]]>.

    starts is int64 [G+1], latents int32 [G], tokens int64 [nnz], coefficients float32 [nnz].
    """
    num_groups, width = len(latents), w_dec_CD.shape[1]
    sums = torch.empty(num_groups, device=w_dec_CD.device)
    if num_groups == 0:
        return sums
    block = _block(width, INFLUENCE_BLOCK_D)
    with torch.cuda.device_of(w_dec_CD):
        influence_kernel[(num_groups,)](
            starts,
            latents,
            tokens,
            coefficients,
            grad_ND.contiguous(),
            w_dec_CD,
            sums,
            width,
            UNROLL=UNROLL,
            BLOCK_D=block,
            num_warps=max(1, block // COLUMNS_PER_WARP),
            enable_fp_fusion=False,
        )
    LAUNCHES["project_documents"] += 1
    return sums


def _block(width: int, largest: int) -> int:
    return min(largest, max(SMALLEST_BLOCK, triton.next_power_of_2(width)))


@triton.jit
def project_kernel(
    tokens, latents, grad_ND, w_CD, projections, num_pairs, D, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = pair < num_pairs
    grad_row = grad_ND + tl.load(tokens + pair, mask=exists, other=0).to(tl.int64) * D
    w_row = w_CD + tl.load(latents + pair, mask=exists, other=0).to(tl.int64) * D
    sums = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for first in range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mask = exists[:, None] & (column < D)[None, :]
        grad = tl.load(grad_row[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        w = tl.load(w_row[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        sums = tl.fma(grad, w, sums)
    tl.store(projections + pair, tl.sum(sums, axis=1), mask=exists)


@triton.jit
def influence_kernel(
    starts, latents, tokens, coefficients, grad_ND, w_CD, sums, D, UNROLL: tl.constexpr, BLOCK_D: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(starts + group)
    end = tl.load(starts + group + 1)
    w_row = w_CD + tl.load(latents + group).to(tl.int64) * D
    products = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        weighted = tl.zeros([BLOCK_D], tl.float32)
        for pair in range(begin, end, UNROLL):
            for step in tl.static_range(UNROLL):  # loads of several gradient rows are under way at once
                exists = pair + step < end
                token = tl.load(tokens + pair + step, mask=exists, other=0).to(tl.int64)
                coefficient = tl.load(coefficients + pair + step, mask=exists, other=0.0)
                width = tl.where(exists, D, 0)
                grad = tl.load(grad_ND + token * D + column, mask=column < width, other=0.0).to(tl.float32)
                weighted = tl.fma(grad, coefficient, weighted)
        w = tl.load(w_row + column, mask=column < D, other=0.0).to(tl.float32)
        products = tl.fma(weighted, w, products)
    tl.store(sums + group, tl.sum(products, axis=0))
