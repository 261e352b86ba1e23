"""The oracle: encode and decode of a canonical SAE, dense in [N, C], in float32, differentiable.

Slow and obvious on purpose; tests, benchmarks and the gate compare the sparse operators with it.

Shapes: N tokens, D width that is read or written, C latents.
"""

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import (
    GroupMax,
    InputStats,
    MatchingPursuit,
    Sae,
    Threshold,
    TopK,
    normalise_input,
    undo_norm,
)


def encode_dense(sae: Sae, hidden_ND: Tensor) -> Tensor:
    """Activations a_NC, float32, zero where a latent is inactive. Raises SaeError on a wrong width."""
    x_ND, _ = normalise_input(sae, hidden_ND)
    if isinstance(sae.rule, MatchingPursuit):
        return _pursue(x_ND.float() - sae.b_dec_D, sae.w_dec_CD.float(), sae.rule)
    u_NC = x_ND.float() @ sae.w_enc_CD.float().T + sae.bias_C
    match sae.rule:
        case Threshold():
            return _threshold(u_NC, sae.rule)
        case TopK():
            return _top_k(u_NC, sae.rule)
        case GroupMax():
            return _group_max(u_NC, sae.rule)


def decode_dense(sae: Sae, a_NC: Tensor, stats: InputStats, x_ND: Tensor | None = None) -> Tensor:
    """The reconstruction ẑ_ND, float32, from activations and what `normalise_input` returned of the same tokens.

    A skip connection needs `x_ND`, the first of the two; SaeError where it is missing. Others leave it aside.
    """
    decoded_ND = a_NC @ sae.w_dec_CD.float() + sae.b_dec_D
    if sae.w_skip_DD is not None:
        if x_ND is None:
            raise SaeError(
                f"the SAE {sae.facts.source!r} has a skip connection, whose share of the reconstruction comes from the "
                "encoder's input; pass x_ND, the first value of normalise_input"
            )
        decoded_ND = decoded_ND + x_ND.float() @ sae.w_skip_DD
    return undo_norm(sae, decoded_ND, stats)


def _threshold(u_NC: Tensor, rule: Threshold) -> Tensor:
    active_NC = u_NC > rule.threshold_C
    if rule.negative_threshold_C is not None:
        return torch.where(active_NC | (u_NC < -rule.negative_threshold_C), u_NC, 0.0)
    value_NC = u_NC if rule.scale_C is None else u_NC * rule.scale_C
    value_NC = value_NC if rule.offset_C is None else value_NC + rule.offset_C
    return torch.where(active_NC, value_NC.relu(), 0.0)


def _top_k(u_NC: Tensor, rule: TopK) -> Tensor:
    rank_NC = u_NC.abs() if rule.signed else u_NC
    # A stable sort gives ties to the smaller latent; torch.topk promises no order among equals.
    chosen_NK = rank_NC.sort(dim=1, descending=True, stable=True).indices[:, : rule.k]
    kept_NC = torch.zeros_like(u_NC, dtype=torch.bool).scatter(1, chosen_NK, True)
    return torch.where(kept_NC & (rank_NC > 0), u_NC, 0.0)


def _group_max(u_NC: Tensor, rule: GroupMax) -> Tensor:
    u_NGS = u_NC.unflatten(1, (rule.groups, -1))
    # argmax promises the first of equals.
    kept_NGS = torch.zeros_like(u_NGS, dtype=torch.bool).scatter(2, u_NGS.argmax(dim=2, keepdim=True), True)
    return torch.where(kept_NGS & (u_NGS > 0), u_NGS, 0.0).flatten(1)


def _pursue(residual_ND: Tensor, w_CD: Tensor, rule: MatchingPursuit) -> Tensor:
    """All tokens step together; those that are done by nothing. Only which latents are taken has no gradient."""
    a_NC = torch.zeros(len(residual_ND), len(w_CD), device=residual_ND.device)
    going_N1 = torch.ones(len(residual_ND), 1, dtype=torch.bool, device=residual_ND.device)
    for _ in range(rule.max_iterations):
        # max promises the first of equals.
        u_N1, taken_N1 = (residual_ND @ w_CD.T).max(dim=1, keepdim=True)
        row_ND = w_CD[taken_N1.squeeze(1)]
        value_N1 = torch.where(going_N1 & (u_N1 > 0), (residual_ND * row_ND).sum(dim=1, keepdim=True).relu(), 0.0)
        repeated_N1 = a_NC.gather(1, taken_N1) != 0
        a_NC = a_NC.scatter_add(1, taken_N1, value_N1)
        residual_ND = residual_ND - value_N1 * row_ND
        going_N1 = going_N1 & (value_N1 > 0) & ~(repeated_N1 & rule.stop_on_repeat)
        going_N1 = going_N1 & ~(residual_ND.norm(dim=1, keepdim=True) < rule.residual_threshold)
        if not going_N1.any():
            break
    return a_NC
