"""Which variant runs, with which blocks: a small static table, so that the same call always runs the same way.

Letters: N tokens, C latents, D width.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from gradsae_kernels.contracts import ContractError
from gradsae_kernels.emit.firing import Firing, Rule

WIDEST_WORDS = 32_768  # latents up to which a program's stripe meets enough hits to make counters slow
BLOCKS = (64, 128, 256)
TENSOR_CORE_DTYPES = frozenset({torch.bfloat16, torch.float16})


class EmitVariant(StrEnum):
    """How records leave the matrix product."""

    APPEND = "append"  # fused; a counter per token; wide dictionaries
    WORDS = "words"  # fused; bitmask words, no atomics, in order; narrow dictionaries
    SCAN = "scan"  # a library's product in tiles, then a scan: portable, and the rival to beat


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitPlan:
    """A variant and its blocks. Results are bitwise repeatable for a fixed plan; `str(plan)` is fit to be recorded."""

    variant: EmitVariant
    screen: bool  # sieve with bf16 operands, then dot what is left again in fp32
    block_n: int = 128
    block_c: int = 128
    block_d: int = 64
    num_warps: int = 4
    num_stages: int = 3
    group: int = 8  # blocks of tokens that share a block of latents
    pack: int = 1  # elements that one comparison can dismiss
    bulk: bool = True  # tensor descriptors (TMA) where the operands are aligned

    def __str__(self) -> str:
        if self.variant is EmitVariant.SCAN:
            return "scan" + ("+screen" if self.screen else "")
        blocks = f"{self.block_n}x{self.block_c}x{self.block_d}"
        return f"{self.variant}{'+screen' if self.screen else ''} {blocks} w{self.num_warps} s{self.num_stages}"


def choose_plan(
    capability: tuple[int, int],
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    width: int,
    num_latents: int,
    *,
    by_rank: bool = False,
) -> EmitPlan:
    """The plan for a device of this compute capability and operands of these dtypes, D = width and C latents.

    `by_rank`: for `encode_topk`, whose selection wants one bin per token, which stripes of latents do not give.

    Two bf16 or two fp16 operands go to the tensor cores as they are: their products are exact in fp32. Any other pair
    is screened. The table was made by counting instructions and registers, not by timing.

    >>> str(choose_plan((9, 0), torch.bfloat16, torch.bfloat16, 2304, 65536))
    'append 128x128x64 w4 s3'
    """
    screen = x_dtype != w_dtype or x_dtype not in TENSOR_CORE_DTYPES
    narrow = num_latents <= WIDEST_WORDS and not screen and not by_rank
    return EmitPlan(
        variant=EmitVariant.WORDS if narrow else EmitVariant.APPEND,
        screen=screen,
        num_warps=8 if narrow or capability < (9, 0) else 4,
        pack=4 if capability == (9, 0) and not narrow else 1,
        bulk=capability >= (9, 0) and width % 8 == 0,
    )


def capability_of(device: torch.device) -> tuple[int, int]:
    """The compute capability; the interpreter on a CPU plays a Hopper GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def plan_of_call(x_ND: Tensor, w_CD: Tensor, requested: EmitPlan | None, *, by_rank: bool = False) -> EmitPlan:
    """The requested plan, or the table's for these operands and their device.

    Raises ContractError for a plan of words where one counter per token is needed (screens and ranks), that multiplies
    operands of different dtypes without a screen, or whose blocks a GPU would spread over too many threads: an element
    that two threads hold would be emitted twice.
    """
    if requested is None:
        num_latents, width = w_CD.shape
        return choose_plan(capability_of(x_ND.device), x_ND.dtype, w_CD.dtype, width, num_latents, by_rank=by_rank)
    if requested.variant is EmitVariant.WORDS and (requested.screen or by_rank):
        raise ContractError(
            f"plan: got {requested} for a screen or a rank; expected append or scan, which keep one bin per token; "
            "change the variant"
        )
    if x_ND.is_cuda and requested.variant is not EmitVariant.SCAN:
        _check_blocks(requested)
    if requested.variant is not EmitVariant.SCAN and not requested.screen and x_ND.dtype != w_CD.dtype:
        raise ContractError(
            f"plan: got {requested} for x in {x_ND.dtype} and weights in {w_CD.dtype}; expected one dtype; cast one of "
            "them, or take a plan with screen=True"
        )
    return requested


def _check_blocks(plan: EmitPlan) -> None:
    sound = plan.block_n in BLOCKS and plan.block_c in BLOCKS and plan.block_d in (16, 32, 64, 128)
    if not sound or plan.num_warps not in (4, 8) or plan.pack not in (1, 4):
        raise ContractError(
            f"plan: got {plan}, pack {plan.pack}; expected blocks of {BLOCKS} tokens and latents, 16 to 128 columns, "
            "4 or 8 warps, a pack of 1 or 4; change those fields"
        )


def plan_for(plan: EmitPlan, firing: Firing) -> EmitPlan:
    """The plan with the warps and pack that keep this test's registers from spilling."""
    folded = firing.rule is Rule.FOLDED
    narrow = folded or firing.rule is Rule.BAR
    return replace(plan, num_warps=plan.num_warps if narrow else 8, pack=plan.pack if folded else 1)
