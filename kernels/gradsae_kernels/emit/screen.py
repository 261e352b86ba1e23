"""A bf16 product as a sieve for the exact fp32 answer: the slack that lets no latent slip.

With x = x̂ + δx and w = ŵ + δw (x̂, ŵ the bf16 roundings), |x·w − x̂·ŵ| ≤ ‖δx‖‖ŵ‖ + ‖x‖‖δw‖ (Cauchy-Schwarz). The sums of
both products round as well; if no addition errs by more than 2⁻²³ of the largest partial sum, by less than
D·2⁻²²·(‖x‖‖w‖ + |bias| + |threshold|) together. So a latent whose fp32 pre-activation passes its threshold is above
threshold minus slack in the bf16 product. The slack of token n and latent c is written as slack_N[n] * slack_C[c], with
the worst ‖δx‖/‖x‖ of all tokens for each; what depends on the latent alone moves its start or thresholds.

Letters: N tokens, C latents of a slab, D width, R rows of either.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradsae_kernels.emit.firing import Firing, Rule
from gradsae_kernels.launches import LAUNCHES

SLAB_ELEMENTS = 2**24  # 32 MB for the bf16 copy of a slab of weights
SUMS = 2.0**-22  # what sums may lose, for each of the D terms
ROOM = 1 + 2.0**-10  # for the rounding of the norms themselves


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lowered:
    """Rows rounded to bf16 (finite where they are), and float32 norms of the rows, of the copies, of what was lost."""

    low_RD: Tensor
    norm_R: Tensor
    low_norm_R: Tensor
    lost_R: Tensor


def lowered(full_RD: Tensor) -> Lowered:
    """One pass over contiguous rows of any float type."""
    from gradsae_kernels.emit.row_kernel import lower_kernel

    num_rows, width = full_RD.shape
    low_RD = torch.empty((num_rows, width), dtype=torch.bfloat16, device=full_RD.device)
    norms_3R = torch.empty((3, num_rows), device=full_RD.device)
    block = 1 << (width - 1).bit_length()
    LAUNCHES["lower"] += 1
    lower_kernel[(num_rows,)](
        full_RD,
        low_RD,
        norms_3R,
        num_rows,
        width,
        LARGEST=torch.finfo(torch.bfloat16).max,
        BLOCK_D=block,
        num_warps=max(1, min(16, block // 512)),
    )
    norm_R, low_norm_R, lost_R = norms_3R * ROOM
    return Lowered(low_RD=low_RD, norm_R=norm_R, low_norm_R=low_norm_R, lost_R=lost_R)


def screened(firing: Firing, x: Lowered, w: Lowered) -> Firing:
    """The firing of a sieve of x and w: wherever the fp32 pre-activation fires, and a little beyond."""
    sums = w.low_RD.shape[1] * SUMS
    worst = (x.lost_R / x.norm_R.clamp(min=torch.finfo(torch.float32).tiny)).amax()
    slack_C = (worst * w.low_norm_R + w.lost_R + sums * torch.maximum(w.norm_R, w.low_norm_R)) * ROOM
    loss_C = firing.start_C.abs() * sums
    norm_N = torch.where(x.norm_R > 0, x.norm_R.clamp(min=torch.finfo(torch.float32).tiny), 0)
    firing = replace(firing, slack_N=norm_N, slack_C=slack_C)
    if firing.rule is Rule.ABOVE:
        above_C = _moved(firing.above_C, -1, loss_C, sums)
        return replace(firing, rule=Rule.FOLDED, start_C=firing.start_C - above_C, above_C=None)
    if firing.rule is Rule.TWO_SIDED:
        above_C, below_C = _moved(firing.above_C, -1, loss_C, sums), _moved(firing.below_C, 1, loss_C, sums)
        return replace(firing, above_C=above_C, below_C=below_C)
    assert firing.bar_N is not None, "a folded rule has lost the sizes that its slack depends on"
    bar_N = firing.bar_N * (1 - sums)
    if firing.rule is Rule.BAR:
        return replace(firing, rule=Rule.FOLDED, start_C=firing.start_C + loss_C, bar_N=bar_N)
    return replace(firing, bar_N=bar_N - loss_C.amax())


def _moved(limit_C: Tensor | None, direction: int, loss_C: Tensor, sums: float) -> Tensor:
    """A threshold moved by what the sums may lose of it and of the start; infinite ones stay."""
    assert limit_C is not None
    return limit_C + direction * (loss_C + torch.where(limit_C.isfinite(), limit_C.abs() * sums, 0))
