"""Run a plan: the matrix product of tokens and latents, and bins of what fired.

Letters: N tokens, C latents, D width, T latents of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradsae_kernels.emit.bins import RECORD_ELEMENTS, Bins
from gradsae_kernels.emit.firing import Firing
from gradsae_kernels.emit.plan import TENSOR_CORE_DTYPES, EmitPlan, EmitVariant, plan_for
from gradsae_kernels.emit.screen import SLAB_ELEMENTS, lowered, screened
from gradsae_kernels.launches import LAUNCHES, interpreting

SCAN_TOKENS = 4096
SCAN_ELEMENTS = 2**23  # 32 MB of fp32: of a tile of pre-activations, which an L2 of 50 MB holds, and of its weights
SCAN_BLOCK = 1024
PROGRAMS_PER_PROCESSOR = 2
LEAST_STRIPE_ROOM = 64


def tokens_at_once(plan: EmitPlan, capacity: int, width: int) -> int:
    """Tokens whose bins, and whose bf16 copies where they are screened, stay within the scratch; at least one."""
    tokens = RECORD_ELEMENTS // (room_of_bin(plan, capacity) * (4 if plan.variant is EmitVariant.WORDS else 1))
    if plan.variant is EmitVariant.SCAN:
        tokens = min(tokens, SCAN_TOKENS)
    if plan.screen:
        tokens = min(tokens, SLAB_ELEMENTS // width)
    return max(1, tokens // plan.block_n * plan.block_n or tokens)


def room_of_bin(plan: EmitPlan, capacity: int) -> int:
    """Records of a bin at the first try, for `capacity` of a token: latents that fire often may be neighbours."""
    return max(LEAST_STRIPE_ROOM, capacity // 2) if plan.variant is EmitVariant.WORDS else capacity


def fill_bins(x_ND: Tensor, w_CD: Tensor, firing: Firing, plan: EmitPlan, room: int) -> Bins:
    """Records of all that fires, of which each bin stores `room`; at least one token.

    Of a screened plan the values are those of the sieve: only which latents fire, and some that do not, is known.
    """
    if plan.variant is EmitVariant.WORDS:
        return _fill_words(x_ND, w_CD, firing, plan_for(plan, firing), room)
    bins = _empty_bins(len(x_ND), 1, room, x_ND.device, ordered=plan.variant is EmitVariant.SCAN)
    fill = _scan if plan.variant is EmitVariant.SCAN else _append
    if not plan.screen:
        fill(x_ND, w_CD, firing, plan_for(plan, firing), bins, 0)
        return bins
    x = lowered(x_ND)
    for first, slab_CD, part in _slabs(w_CD, firing):
        w = lowered(slab_CD)
        part = screened(part, x, w)
        fill(x.low_RD, w.low_RD, part, plan_for(plan, part), bins, first)
    return bins


def _slabs(w_CD: Tensor, firing: Firing) -> Iterator[tuple[int, Tensor, Firing]]:
    """Runs of latents whose bf16 copy is small, with their part of the firing."""
    width = max(1024, SLAB_ELEMENTS // w_CD.shape[1] // 128 * 128)
    for first in range(0, len(w_CD), width):
        yield first, w_CD[first : first + width], firing.of_latents(first, first + width)


def _empty_bins(num_tokens: int, per_token: int, capacity: int, device: torch.device, *, ordered: bool) -> Bins:
    """Bins with one token more than there are: rows of a block past the end write there."""
    counts_NB = torch.zeros((num_tokens + 1, per_token), dtype=torch.int32, device=device)
    records = torch.empty(((num_tokens + 1) * per_token, capacity), dtype=torch.int64, device=device)
    return Bins(records=records, counts_NB=counts_NB[:num_tokens], ordered=ordered)


def _append(x_ND: Tensor, w_CD: Tensor, firing: Firing, plan: EmitPlan, bins: Bins, first: int) -> None:
    from gradsae_kernels.emit.triton_kernel import append_kernel

    blocks = -(-len(x_ND) // plan.block_n) * -(-len(w_CD) // plan.block_c)
    programs = min(blocks, PROGRAMS_PER_PROCESSOR * _processors(x_ND.device))
    LAUNCHES[f"append {firing.rule.name.lower()}{' screen' if firing.slack_N is not None else ''}"] += 1
    append_kernel[(programs,)](
        *_operands(x_ND, w_CD, plan),
        *firing.tensors(),
        bins.records,
        bins.counts_NB,
        len(x_ND),
        len(w_CD),
        x_ND.shape[1],
        bins.capacity,
        first,
        GROUP=plan.group,
        PACK=plan.pack,
        **_options(x_ND, w_CD, firing, plan),
    )


def _fill_words(x_ND: Tensor, w_CD: Tensor, firing: Firing, plan: EmitPlan, room: int) -> Bins:
    from gradsae_kernels.emit.triton_kernel import words_kernel

    blocks_n, blocks_c = -(-len(x_ND) // plan.block_n), -(-len(w_CD) // plan.block_c)
    wanted = min(
        PROGRAMS_PER_PROCESSOR * _processors(x_ND.device) // blocks_n, RECORD_ELEMENTS // (len(x_ND) * room), blocks_c
    )
    stripe_blocks = -(-blocks_c // max(1, wanted))
    stripes = -(-blocks_c // stripe_blocks)
    bins = _empty_bins(len(x_ND), stripes, room, x_ND.device, ordered=True)
    LAUNCHES[f"words {firing.rule.name.lower()}"] += 1
    words_kernel[(blocks_n * stripes,)](
        *_operands(x_ND, w_CD, plan),
        *firing.tensors(),
        bins.records,
        bins.counts_NB,
        len(x_ND),
        len(w_CD),
        x_ND.shape[1],
        bins.capacity,
        stripes,
        stripe_blocks,
        **_options(x_ND, w_CD, firing, plan),
    )
    return bins


def _scan(x_ND: Tensor, w_CD: Tensor, firing: Firing, plan: EmitPlan, bins: Bins, first: int) -> None:
    from gradsae_kernels.emit.triton_kernel import scan_kernel

    width = max(128, SCAN_ELEMENTS // max(len(x_ND), x_ND.shape[1]) // 128 * 128)
    for begin in range(0, len(w_CD), width):
        u_NT = product(x_ND, w_CD[begin : begin + width])
        LAUNCHES[f"scan {firing.rule.name.lower()}{' screen' if firing.slack_N is not None else ''}"] += 1
        scan_kernel[(len(x_ND),)](
            u_NT,
            *firing.of_latents(begin, begin + width).tensors(),
            bins.records,
            bins.counts_NB,
            len(x_ND),
            u_NT.shape[1],
            bins.capacity,
            first + begin,
            RULE=int(firing.rule),
            BLOCK_T=SCAN_BLOCK,
            num_warps=4,
        )


def product(x_ND: Tensor, w_TD: Tensor) -> Tensor:
    """float32 [N, T]; half-precision operands are multiplied as they are, with fp32 sums."""
    if x_ND.is_cuda and x_ND.dtype == w_TD.dtype and x_ND.dtype in TENSOR_CORE_DTYPES:
        return torch.mm(x_ND, w_TD.T, out_dtype=torch.float32)
    return x_ND.float() @ w_TD.float().T


def _operands(x_ND: Tensor, w_CD: Tensor, plan: EmitPlan) -> tuple[Any, Any]:
    """Tensor descriptors where the plan wants them and the addresses allow it, else the tensors."""
    if not _is_bulk(x_ND, w_CD, plan):
        return x_ND, w_CD
    from triton.tools.tensor_descriptor import TensorDescriptor

    return (
        TensorDescriptor.from_tensor(x_ND, [plan.block_n, plan.block_d]),
        TensorDescriptor.from_tensor(w_CD, [plan.block_c, plan.block_d]),
    )


def _is_bulk(x_ND: Tensor, w_CD: Tensor, plan: EmitPlan) -> bool:
    aligned = all(part.data_ptr() % 16 == 0 for part in (x_ND, w_CD))
    return plan.bulk and aligned and x_ND.shape[1] * x_ND.element_size() % 16 == 0


def _options(x_ND: Tensor, w_CD: Tensor, firing: Firing, plan: EmitPlan) -> dict[str, Any]:
    return {
        "RULE": int(firing.rule),
        "PRECISION": "ieee",
        "BLOCK_N": plan.block_n,
        "BLOCK_C": plan.block_c,
        "BLOCK_D": plan.block_d,
        "BULK": _is_bulk(x_ND, w_CD, plan),
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    assert interpreting()
    return 2
