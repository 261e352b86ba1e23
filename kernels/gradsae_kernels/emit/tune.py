"""Measure plans instead of looking one up: opt-in, and on bins that nobody else uses.

Letters: N tokens, C latents, D width.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradsae_kernels.backend import Backend
from gradsae_kernels.emit.plan import EmitPlan, EmitVariant, plan_of_call
from gradsae_kernels.encode_threshold import DEFAULT_CAPACITY, encode_threshold

BLOCKS = ((128, 128, 4), (128, 128, 8), (128, 256, 8), (256, 128, 8))  # tokens, latents, warps
TURNS = 5


def tune_plan(
    x_ND: Tensor,
    w_enc_CD: Tensor,
    bias_C: Tensor,
    threshold_C: Tensor,
    *,
    plans: Sequence[EmitPlan] | None = None,
    capacity: int = DEFAULT_CAPACITY,
) -> EmitPlan:
    """The plan whose best of five turns of `encode_threshold` is the shortest, for operands like these.

    `plans`: by default the three variants with four choices of blocks each. Plans take turns, and each call has bins of
    its own. Pass the answer as `plan`, and record it: another plan may round otherwise. Raises what `encode_threshold`
    raises; a plan that a device cannot launch is an error of Triton's.
    """
    plans = list(plans) if plans is not None else candidates(plan_of_call(x_ND, w_enc_CD, None))
    best = dict.fromkeys(plans, float("inf"))
    for turn in range(TURNS + 1):
        for plan in plans:
            begin = time.perf_counter()
            encode_threshold(x_ND, w_enc_CD, bias_C, threshold_C, backend=Backend.TRITON, plan=plan, capacity=capacity)
            if x_ND.is_cuda:
                torch.cuda.synchronize(x_ND.device)
            if turn:  # the first compiles
                best[plan] = min(best[plan], time.perf_counter() - begin)
    return min(plans, key=lambda plan: best[plan])


def candidates(plan: EmitPlan) -> list[EmitPlan]:
    """The table's plan first, then every variant that can run in its stead, with each choice of blocks."""
    fused = [EmitVariant.APPEND] if plan.screen else [EmitVariant.APPEND, EmitVariant.WORDS]
    others = [
        replace(plan, variant=variant, block_n=n, block_c=c, num_warps=warps)
        for variant in fused
        for n, c, warps in BLOCKS
    ]
    return list(dict.fromkeys([plan, *others, replace(plan, variant=EmitVariant.SCAN)]))
