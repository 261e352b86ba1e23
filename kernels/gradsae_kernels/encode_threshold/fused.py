"""`encode_threshold` on a GPU: the kernels of `emit` say what fires, and a few passes over that finish the values.

A plain threshold (ReLU, JumpReLU) starts the accumulator at bias - threshold, so that firing is being positive. Where
a value map or a second threshold needs u itself, the threshold is compared in the epilogue.

Letters: N tokens, C latents, D width.
"""

import torch
from torch import Tensor

from gradsae_kernels.contracts import nonfinite_row
from gradsae_kernels.emit.bins import Bins, rows_of_bins
from gradsae_kernels.emit.fill import fill_bins, room_of_bin, tokens_at_once
from gradsae_kernels.emit.firing import Firing, Rule
from gradsae_kernels.emit.plan import EmitPlan, plan_of_call
from gradsae_kernels.encode_threshold.rule import ThresholdRule
from gradsae_kernels.sparse_rows import SparseRows, concatenate, keep_entries
from gradsae_kernels.tiles import token_chunks


def encode_threshold_fused(
    x_ND: Tensor, w_enc_CD: Tensor, rule: ThresholdRule, plan: EmitPlan | None, capacity: int
) -> SparseRows:
    """The contract of `encode_threshold`; `capacity` latents of a token are stored at the first try."""
    plan = plan_of_call(x_ND, w_enc_CD, plan)
    capacity = min(capacity, len(w_enc_CD))
    chunks = token_chunks(len(x_ND), tokens_at_once(plan, capacity, x_ND.shape[1]))
    with torch.cuda.device_of(x_ND):
        return concatenate([_encode(x_ND[a:b].contiguous(), w_enc_CD, rule, plan, capacity, a) for a, b in chunks])


def _encode(
    x_ND: Tensor, w_enc_CD: Tensor, rule: ThresholdRule, plan: EmitPlan, capacity: int, first_row: int
) -> SparseRows:
    from gradsae_kernels.project.triton_kernel import project_triton

    if len(x_ND) == 0:
        return _nothing(x_ND)
    firing = _firing(rule, plan)

    def fill(rows: Tensor, room: int) -> Bins:
        return fill_bins(x_ND[rows], w_enc_CD, firing, plan, room)

    rows = rows_of_bins(fill_bins(x_ND, w_enc_CD, firing, plan, room_of_bin(plan, capacity)), fill)
    if plan.screen:
        u = project_triton(rows, x_ND, w_enc_CD) + rule.bias_C[rows.indices]
        rows = SparseRows(rows.indptr, rows.indices, u)
        rows = keep_entries(rows, rule.fires(u, rows.indices))
    elif firing.rule is Rule.FOLDED:
        rows = SparseRows(rows.indptr, rows.indices, rows.values + rule.above_C[rows.indices])
    return _finished(rows, rule, first_row)


def _firing(rule: ThresholdRule, plan: EmitPlan) -> Firing:
    if rule.below_C is not None:
        return Firing(rule=Rule.TWO_SIDED, start_C=rule.bias_C, above_C=rule.above_C, below_C=rule.below_C)
    if plan.screen or rule.scale_C is not None:
        return Firing(rule=Rule.ABOVE, start_C=rule.bias_C, above_C=rule.above_C)
    return Firing(rule=Rule.FOLDED, start_C=rule.bias_C - rule.above_C)


def _finished(rows: SparseRows, rule: ThresholdRule, first_row: int) -> SparseRows:
    """Values of pre-activations, without those that are zero; ContractError for a row that is not finite."""
    values = rule.values(rows.values, rows.indices)
    finite = torch.isfinite(values)
    if not finite.all():
        entry = int((~finite).to(torch.uint8).argmax())
        raise nonfinite_row(first_row + int((rows.indptr[1:] <= entry).sum()))
    rows = SparseRows(rows.indptr, rows.indices, values)
    if rule.below_C is None and rule.scale_C is None:
        return rows  # nothing is zero above a threshold that is not below zero
    return keep_entries(rows, values != 0)


def _nothing(x_ND: Tensor) -> SparseRows:
    empty = torch.empty(0, device=x_ND.device)
    return SparseRows(torch.zeros(1, dtype=torch.int64, device=x_ND.device), empty.to(torch.int32), empty)
