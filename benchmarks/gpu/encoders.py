"""The ways to encode: the bare product, every Triton variant, and what plain torch offers.

Letters: N tokens, D model width, C latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.truth import check_dense, check_threshold, check_topk
from benchmarks.gpu.variant import Variant, unavailable
from benchmarks.gpu.workload import Workload, encode_in_chunks, pairs
from gradsae_kernels import Backend, SparseRows, encode_threshold, encode_topk
from gradsae_kernels.emit.plan import EmitPlan, EmitVariant, choose_plan
from gradsae_kernels.launches import runs_triton, why_no_triton

FLOOR = "product: bare"
TF32 = "bare, TF32 (not exact)"
TF32_SLACK = 0.02  # inputs lose 13 bits; sums are of about unit size
PAIR_BYTES = 8  # an int32 and an fp32
COMPILE_SECONDS = 30.0
OUR_SCRATCH = 1e9  # promised is a tenth of it
PLAN_NAMES = {
    EmitVariant.APPEND: "Triton, fused, append",
    EmitVariant.WORDS: "Triton, fused, words",
    EmitVariant.SCAN: "chunked library product, Triton compaction",
}


def why_not(device: torch.device) -> str:
    """Why Triton does not run on this device; empty where it does."""
    if runs_triton(device):
        return ""
    return why_no_triton() or "Triton runs on a CUDA device, or on a CPU with TRITON_INTERPRET=1"


def why_no_plan(plan: EmitPlan) -> str:
    """Why there is no such plan; empty where there is."""
    if plan.screen and plan.variant is EmitVariant.WORDS:
        return "fp32 operands are screened in bf16, and a screen has no words variant"
    return ""


def products(workload: Workload) -> Iterator[Variant]:
    """The floor: the product of the shape alone, with an answer of the operands' dtype; and one of fp32."""
    shape, x_ND, w_CD = workload.shape, workload.x_ND, workload.w_enc_CD
    dense_bytes = shape.dtype.itemsize * shape.dense_elements
    yield Variant(
        operator="product",
        name="bare",
        call=lambda: x_ND @ w_CD.T,
        check=check_dense(workload, rounded=True),
        flops=shape.product_flops,
        bytes_moved=shape.operand_bytes + dense_bytes,
        needs_bytes=dense_bytes,
    )
    if shape.precision == "fp32":
        yield from _tf32(workload)
        return
    if not x_ND.is_cuda:
        yield unavailable("product", "bare, fp32 result", "torch multiplies bf16 into fp32 on CUDA devices only")
        return
    yield Variant(
        operator="product",
        name="bare, fp32 result",
        call=lambda: torch.mm(x_ND, w_CD.T, out_dtype=torch.float32),
        check=check_dense(workload),
        flops=shape.product_flops,
        bytes_moved=shape.operand_bytes + 4 * shape.dense_elements,
        needs_bytes=4 * shape.dense_elements,
    )


def _tf32(workload: Workload) -> Iterator[Variant]:
    if not workload.x_ND.is_cuda:
        yield unavailable("product", TF32, "TF32 is a mode of CUDA devices")
        return
    dense_bytes = 4 * workload.shape.dense_elements
    yield Variant(
        operator="product",
        name=TF32,
        call=partial(_tf32_product, workload.x_ND, workload.w_enc_CD),
        check=check_dense(workload, allowed=TF32_SLACK),
        flops=workload.shape.product_flops,
        bytes_moved=workload.shape.operand_bytes + dense_bytes,
        needs_bytes=dense_bytes,
    )


def _tf32_product(x_ND: Tensor, w_CD: Tensor) -> Tensor:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return x_ND @ w_CD.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def threshold_encoders(workload: Workload, *, compiled: bool) -> Iterator[Variant]:
    """Ours with every plan, the portable backend, and plain torch; `compiled` asks for torch.compile as well."""
    shape = workload.shape
    operands = (workload.x_ND, workload.w_enc_CD, workload.bias_C, workload.threshold_C)
    least_bytes = shape.operand_bytes + PAIR_BYTES * float(len(workload.rows.indices))

    def variant(name: str, call: Callable[[], Any], *, passes: float = 0.0, **rest: Any) -> Variant:
        return Variant(
            operator="encode_threshold",
            name=name,
            call=call,
            flops=shape.product_flops,
            bytes_moved=least_bytes + passes * shape.dense_elements,
            **{"check": check_threshold(workload), **rest},
        )

    for name, plan in plans(workload):
        if reason := why_not(workload.x_ND.device) or why_no_plan(plan):
            yield unavailable("encode_threshold", name, reason)
            continue
        call = partial(encode_threshold, *operands, backend=Backend.TRITON, plan=plan)
        passes = 8.0 if plan.variant is EmitVariant.SCAN else 0.0  # an fp32 tile is written and read
        yield variant(name, call, passes=passes, needs_bytes=OUR_SCRATCH, needs_seconds=10.0, is_ours=True)
    tiled = partial(encode_threshold, *operands, backend=Backend.TILED)
    yield variant("portable torch tiles (fp32)", tiled, passes=8.0, needs_bytes=OUR_SCRATCH, is_ours=True)
    yield variant("torch, chunks of tokens and nonzero", partial(encode_in_chunks, *operands), passes=12.0)
    size = shape.dtype.itemsize
    eager = partial(_eager_pairs, *operands)
    # The product is written, read by the comparison and by the gather's mask; the mask is written once, read twice.
    yield variant(
        "torch, eager, dense then nonzero",
        eager,
        check=check_threshold(workload, rounded=True),
        passes=2 * size + 3,
        needs_bytes=(size + 2) * shape.dense_elements,
    )
    name = "torch.compile, dense answer"
    if not compiled:
        yield unavailable("encode_threshold", name, "left out of the small run: it takes a C++ compiler and its time")
        return
    yield variant(
        name,
        partial(torch.compile(_dense, dynamic=False), *operands),
        check=check_dense(workload, rounded=True, threshold=True),
        passes=3 * size,
        needs_bytes=3 * size * shape.dense_elements,
        needs_seconds=COMPILE_SECONDS,
    )


def topk_encoders(workload: Workload) -> Iterator[Variant]:
    """Ours, the portable backend, and torch's top-k of a dense product."""
    shape = workload.shape
    operands = (workload.x_ND, workload.w_enc_CD, workload.bias_C, shape.active)
    least_bytes = shape.operand_bytes + PAIR_BYTES * float(shape.tokens * shape.active)

    def variant(name: str, call: Callable[[], Any], passes: float, **rest: Any) -> Variant:
        return Variant(
            operator="encode_topk",
            name=name,
            call=call,
            flops=shape.product_flops,
            bytes_moved=least_bytes + passes * shape.dense_elements,
            **{"check": check_topk(workload), **rest},
        )

    if reason := why_not(workload.x_ND.device):
        yield unavailable("encode_topk", "Triton", reason)
    else:
        call = partial(encode_topk, *operands, backend=Backend.TRITON)
        yield variant("Triton", call, 0.0, needs_bytes=OUR_SCRATCH, is_ours=True)
    tiled = partial(encode_topk, *operands, backend=Backend.TILED)
    yield variant("portable torch tiles (fp32)", tiled, 8.0, needs_bytes=OUR_SCRATCH, is_ours=True)
    size = shape.dtype.itemsize
    yield variant(
        "torch, eager, dense then topk",
        partial(_eager_topk, *operands),
        2 * size,
        check=check_topk(workload, rounded=True),
        needs_bytes=3 * size * shape.dense_elements,
    )


def plans(workload: Workload) -> Iterator[tuple[str, EmitPlan]]:
    """The plan that the table chooses for these operands, and the same with the other variants."""
    device, shape = workload.x_ND.device, workload.shape
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    chosen = choose_plan(capability, shape.dtype, shape.dtype, shape.width, shape.latents)
    for kind in EmitVariant:
        mark = " (chosen)" if kind is chosen.variant else ""
        yield PLAN_NAMES[kind] + mark, replace(chosen, variant=kind)


def _eager_pairs(x_ND: Tensor, w_CD: Tensor, bias_C: Tensor, threshold_C: Tensor) -> SparseRows:
    u_NC = F.linear(x_ND, w_CD, bias_C.to(x_ND.dtype))
    return pairs(u_NC, u_NC > threshold_C.to(x_ND.dtype))


def _dense(x_ND: Tensor, w_CD: Tensor, bias_C: Tensor, threshold_C: Tensor) -> Tensor:
    u_NC = F.linear(x_ND, w_CD, bias_C.to(x_ND.dtype))
    return torch.where(u_NC > threshold_C.to(x_ND.dtype), u_NC, 0.0)


def _eager_topk(x_ND: Tensor, w_CD: Tensor, bias_C: Tensor, k: int) -> SparseRows:
    values_NK, latents_NK = F.linear(x_ND, w_CD, bias_C.to(x_ND.dtype)).topk(k, dim=1)
    indptr = torch.arange(len(x_ND) + 1, device=x_ND.device) * k
    return SparseRows(indptr, latents_NK.int().flatten(), values_NK.float().flatten())
