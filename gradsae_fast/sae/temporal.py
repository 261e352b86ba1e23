"""What a temporal SAE predicts of a hidden state from the earlier ones of its window, before it encodes the rest.

    r = x - shift
    of every layer:
        e = relu(scale · r W_encᵀ)                  a dense code of each token
        c = the codes of the tokens before          c[t] = e[t - 1]; zeros at the first token of a window
        h = attention over c[0] … c[t], asked by e[t]
        d = relu(h) W_dec
        r = r - ⟨d, r⟩ / (‖d‖ + eps)² · d
    predicted = x - shift - r                       the decoder adds it to what its latents make
    novel     = scale · r                           the encoder of the latents reads it

The prediction is made of hidden states alone, so no latent of the novel part has a share in it. A token never sees
itself or a later one, and the tokens of other windows are none of its past.

Memory: while a window of T tokens is predicted, about six dense arrays [T, C] exist, and two [T, T] a head where keys
and values of a head are of unlike widths, for which attention is not fused; that much belongs to this architecture.
What stays is [N, D]. The attention's own weights are float32 whatever the SAE's are, 8 C² bytes a layer and more.

Source: arXiv 2511.01836, as SAELens 6.54 computes it.

Letters: N tokens of all windows, T of one, C latents, D width, E width of all keys of a token, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from gradsae_fast.errors import SaeError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """One layer of attention over dense codes; the bias of each map follows it. All float32."""

    w_query_EC: Tensor
    b_query_E: Tensor
    w_key_EC: Tensor
    b_key_E: Tensor
    w_value_CC: Tensor
    b_value_C: Tensor
    w_out_CC: Tensor
    b_out_C: Tensor
    num_heads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a temporal SAE has beside encoder, decoder and rule."""

    layers: tuple[Attention, ...]
    shift_D: Tensor  # float32
    scale: float
    eps: float  # in the units of x


@torch.no_grad()
def predict(
    prediction: Prediction, w_enc_CD: Tensor, w_dec_CD: Tensor, x_ND: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(predicted, novel), float32 [N, D] each, of windows that follow each other, `lengths` tokens long.

    A window comes out the same whatever its neighbours are. Raises SaeError where the lengths do not add up to N.
    """
    if sum(lengths) != len(x_ND):
        raise SaeError(
            f"the windows {list(lengths)} have {sum(lengths)} tokens, but there are {len(x_ND)} hidden states; "
            "expected whole windows, one after the other"
        )
    centred_ND = x_ND.float() - prediction.shift_D
    w_enc_CD, w_dec_CD = w_enc_CD.float(), w_dec_CD.float()
    windows = centred_ND.split(list(lengths))
    left_ND = torch.cat([_left(prediction, w_enc_CD, w_dec_CD, window_TD) for window_TD in windows])
    return centred_ND - left_ND, prediction.scale * left_ND


def _left(prediction: Prediction, w_enc_CD: Tensor, w_dec_CD: Tensor, left_TD: Tensor) -> Tensor:
    """What every layer's prediction together leaves of one window [T, D]."""
    for layer in prediction.layers:
        code_TC = linear(prediction.scale * left_TD, w_enc_CD).relu_()
        direction_TD = _attend(layer, code_TC).relu_() @ w_dec_CD
        norm_T1 = direction_TD.norm(dim=1, keepdim=True) + prediction.eps
        share_T1 = (direction_TD * left_TD).sum(dim=1, keepdim=True) / norm_T1.square()
        left_TD = left_TD - share_T1 * direction_TD
    return left_TD


def _attend(layer: Attention, code_TC: Tensor) -> Tensor:
    """The codes that the attention of one layer expects [T, C], before their negative part is cut off."""
    before_TC = torch.cat([torch.zeros_like(code_TC[:1]), code_TC[:-1]])
    # A leading dimension of 1: fused attention takes batches.
    query_1HTE, key_1HTE, value_1HTC = (
        linear(codes_TC, weight, bias).unflatten(1, (layer.num_heads, -1)).transpose(0, 1)[None]
        for codes_TC, weight, bias in (
            (code_TC, layer.w_query_EC, layer.b_query_E),
            (before_TC, layer.w_key_EC, layer.b_key_E),
            (before_TC, layer.w_value_CC, layer.b_value_C),
        )
    )
    found_1HTC = scaled_dot_product_attention(query_1HTE, key_1HTE, value_1HTC, is_causal=True)
    return linear(found_1HTC[0].transpose(0, 1).flatten(1), layer.w_out_CC, layer.b_out_C)
