"""Triton kernel of `decode`; letters: N tokens, D model width, C latents.

A program owns a block of columns of one row, starts at the bias and adds value * decoder row, latent after latent. A
few decoder rows are fetched at once, but added one by one: the bits of a row depend on that row alone. Programs of one
block of columns run next to each other, so that they meet in the second cache on a slab of the decoder.

Decoder rows are widened to fp32 right after the load. Fused multiply-adds are spelled out, and the compiler may make no
others. Rows are addressed in 64 bits: C * D, N * D and nnz may pass 2**31.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.sparse_rows import SparseRows

BLOCK_D = 1024
COLUMNS_PER_WARP = 256
UNROLL = 4
SMALLEST_BLOCK = 16


def decode_triton(rows: SparseRows, w_dec_CD: Tensor, bias_D: Tensor | None) -> Tensor:
    """The contract of `decode`; weights are read in the type that they have."""
    num_rows, width = len(rows.indptr) - 1, w_dec_CD.shape[1]
    decoded_ND = torch.empty(num_rows, width, device=w_dec_CD.device)
    if num_rows == 0:
        return decoded_ND
    block = min(BLOCK_D, max(SMALLEST_BLOCK, triton.next_power_of_2(width)))
    with torch.cuda.device_of(w_dec_CD):
        decode_kernel[(num_rows, triton.cdiv(width, block))](
            *rows,
            w_dec_CD,
            None if bias_D is None else bias_D.contiguous(),
            decoded_ND,
            width,
            UNROLL=UNROLL,
            BLOCK_D=block,
            num_warps=max(1, block // COLUMNS_PER_WARP),
            enable_fp_fusion=False,
        )
    LAUNCHES["decode"] += 1
    return decoded_ND


@triton.jit
def decode_kernel(indptr, indices, values, w_CD, bias_D, decoded_ND, D, UNROLL: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(indptr + row)
    end = tl.load(indptr + row + 1)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    if bias_D is not None:
        total += tl.load(bias_D + column, mask=column < D, other=0.0)
    for pair in range(begin, end, UNROLL):
        for step in tl.static_range(UNROLL):  # loads of several decoder rows are under way at once
            exists = pair + step < end
            latent = tl.load(indices + pair + step, mask=exists, other=0).to(tl.int64)
            value = tl.load(values + pair + step, mask=exists, other=0.0)
            w = tl.load(w_CD + latent * D + column, mask=column < tl.where(exists, D, 0), other=0.0).to(tl.float32)
            total = tl.fma(w, value, total)
    tl.store(decoded_ND + row * D + column, total, mask=column < D)
