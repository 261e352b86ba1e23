"""The oracle: encode and decode of a canonical SAE, dense in [N, C], in float32, differentiable.

Slow and obvious on purpose; tests, benchmarks and the gate compare the sparse operators with it. To a temporal SAE the
N tokens are one window, from its first token on.

Shapes: N tokens, D width that is read or written, C latents, E width of the keys of all heads, c and e what one head
has of C and E.
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
from gradsae_fast.sae.temporal import Attention, Prediction


def encode_dense(sae: Sae, hidden_ND: Tensor) -> Tensor:
    """Activations a_NC, float32, zero where a latent is inactive. Raises SaeError on a wrong width."""
    x_ND, _ = normalise_input(sae, hidden_ND)
    if isinstance(sae.rule, MatchingPursuit):
        return _pursue(x_ND.float() - sae.b_dec_D, sae.w_dec_CD.float(), sae.rule)
    if sae.prediction is not None:
        x_ND = sae.prediction.scale * (x_ND.float() - sae.prediction.shift_D - _predicted(sae, sae.prediction, x_ND))
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

    A skip connection or a prediction needs `x_ND`, the first of the two; SaeError where it is missing. Others leave it
    aside.
    """
    decoded_ND = a_NC @ sae.w_dec_CD.float() + sae.b_dec_D
    if sae.w_skip_DD is not None or sae.prediction is not None:
        if x_ND is None:
            raise SaeError(
                f"the SAE {sae.facts.source!r} has a skip connection or predicts from earlier tokens, and that share "
                "of the reconstruction comes from the encoder's input; pass x_ND, the first value of normalise_input"
            )
        decoded_ND = decoded_ND + beside_dense(sae, x_ND)
    return undo_norm(sae, decoded_ND, stats)


def beside_dense(sae: Sae, x_ND: Tensor) -> Tensor:
    """What the decoder adds beside its latents before the norm is undone, float32 [N, D]; x as the encoder reads it."""
    if sae.w_skip_DD is not None:
        return x_ND.float() @ sae.w_skip_DD
    if sae.prediction is not None:
        return _predicted(sae, sae.prediction, x_ND)
    return torch.zeros(len(x_ND), sae.d_out, device=x_ND.device)


def _predicted(sae: Sae, prediction: Prediction, x_ND: Tensor) -> Tensor:
    """The sum of what the layers predict: each a share of a direction, taken off before the next one looks."""
    centred_ND = x_ND.float() - prediction.shift_D
    predicted_ND = torch.zeros_like(centred_ND)
    for layer in prediction.layers:
        left_ND = centred_ND - predicted_ND
        expected_NC = _expected(layer, (prediction.scale * left_ND @ sae.w_enc_CD.float().T).relu())
        direction_ND = expected_NC.relu() @ sae.w_dec_CD.float()
        length_N = direction_ND.square().sum(1).sqrt() + prediction.eps
        share_N = torch.einsum("nd,nd->n", direction_ND, left_ND) / length_N**2
        predicted_ND = predicted_ND + share_N[:, None] * direction_ND
    return predicted_ND


def _expected(layer: Attention, code_NC: Tensor) -> Tensor:
    """Attention of every token over a token without a code, then the codes of the tokens before it."""
    num_tokens = len(code_NC)
    past_NC = torch.zeros_like(code_NC)
    past_NC[1:] = code_NC[:-1]
    query_NE = code_NC @ layer.w_query_EC.T + layer.b_query_E
    key_NE = past_NC @ layer.w_key_EC.T + layer.b_key_E
    value_NC = past_NC @ layer.w_value_CC.T + layer.b_value_C
    future_NN = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=code_NC.device).triu(1)
    heads = []
    for query_Ne, key_Ne, value_Nc in zip(
        *(each.chunk(layer.num_heads, 1) for each in (query_NE, key_NE, value_NC)), strict=True
    ):
        score_NN = query_Ne @ key_Ne.T / query_Ne.shape[1] ** 0.5
        heads.append(score_NN.masked_fill(future_NN, float("-inf")).softmax(1) @ value_Nc)
    return torch.cat(heads, 1) @ layer.w_out_CC.T + layer.b_out_C


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
