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

The prediction is made of hidden states alone, so no latent of the novel part has a share in it. A token attends to
neither its own code nor a later one, and the tokens of other windows are none of its past.

Speed: a map reads all its weights in every call, 8 C² bytes a layer for values and output alone. So short windows are
mapped together, in runs of neighbours that hold 1,024 tokens at most or are one longer window; only the attention is
taken window by window.

Memory: while a run of R tokens is predicted, about six dense arrays [R, C] and two [R, E] exist, and two [T, T] a head
of one window where attention is not fused, as for keys and values of a head of unlike widths; that much belongs to this
architecture. What stays is [N, D]. The attention's own weights are float32 whatever the SAE's are; encoder and decoder
that are kept in half precision have a float32 copy for the time of a call, one where they are tied.

Source: arXiv 2511.01836, as SAELens 6.54 computes it.

Letters: N tokens of all windows, R of a run of neighbours, T of one window, C latents, D width, E width of all keys of
a token, H heads, c and e what one head has of C and E.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from gradsae_fast.errors import SaeError

TOKENS_TOGETHER = 1024  # enough that a product is bound by arithmetic, not by reading its weights


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
    scale: float  # multiplies what is left of x wherever it is encoded: by every layer, and as the novel part
    eps: float  # in the units of x


@torch.no_grad()
def predict(
    prediction: Prediction, w_enc_CD: Tensor, w_dec_CD: Tensor, x_ND: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(predicted, novel), float32 [N, D] each, of windows that follow each other, `lengths` tokens long.

    A window comes out the same whatever its neighbours are, up to the rounding of a product of another size. Raises
    SaeError where the lengths do not add up to N.
    """
    if sum(lengths) != len(x_ND):
        raise SaeError(
            f"the windows {list(lengths)} have {sum(lengths)} tokens, but there are {len(x_ND)} hidden states; "
            "expected whole windows, one after the other"
        )
    centred_ND = x_ND.float() - prediction.shift_D
    tied = w_enc_CD is w_dec_CD
    w_dec_CD = w_dec_CD.float()
    w_enc_CD = w_dec_CD if tied else w_enc_CD.float()
    runs = list(_runs(lengths))
    parts = zip(centred_ND.split([sum(run) for run in runs]), runs, strict=True)
    left_ND = torch.cat([_left(prediction, w_enc_CD, w_dec_CD, left_RD, run) for left_RD, run in parts])
    return centred_ND - left_ND, prediction.scale * left_ND


def _runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Neighbouring windows that hold `TOKENS_TOGETHER` tokens at most; a longer window is a run by itself."""
    run = list[int]()
    for length in lengths:
        if run and sum(run) + length > TOKENS_TOGETHER:
            yield run
            run = []
        run.append(length)
    if run:
        yield run


def _left(prediction: Prediction, w_enc_CD: Tensor, w_dec_CD: Tensor, left_RD: Tensor, lengths: list[int]) -> Tensor:
    """What every layer's prediction together leaves of a run of windows [R, D]."""
    for layer in prediction.layers:
        code_RC = linear(prediction.scale * left_RD, w_enc_CD).relu_()
        direction_RD = _expect(layer, code_RC, lengths).relu_() @ w_dec_CD
        norm_R1 = direction_RD.norm(dim=1, keepdim=True) + prediction.eps
        share_R1 = (direction_RD * left_RD).sum(dim=1, keepdim=True) / norm_R1.square()
        left_RD = left_RD - share_R1 * direction_RD
    return left_RD


def _expect(layer: Attention, code_RC: Tensor, lengths: list[int]) -> Tensor:
    """The codes that the attention of one layer expects [R, C], before their negative part is cut off."""
    before_RC = torch.cat([_shift(code_TC) for code_TC in code_RC.split(lengths)])
    mapped = (
        linear(code_RC, layer.w_query_EC, layer.b_query_E),
        linear(before_RC, layer.w_key_EC, layer.b_key_E),
        linear(before_RC, layer.w_value_CC, layer.b_value_C),
    )
    windows = zip(*(each.split(lengths) for each in mapped), strict=True)
    found_RC = torch.cat([_attend(layer.num_heads, *window) for window in windows])
    return linear(found_RC, layer.w_out_CC, layer.b_out_C)


def _shift(code_TC: Tensor) -> Tensor:
    """The code of the token before each; zeros at the first of the window."""
    return torch.cat([torch.zeros_like(code_TC[:1]), code_TC[:-1]])


def _attend(num_heads: int, query_TE: Tensor, key_TE: Tensor, value_TC: Tensor) -> Tensor:
    """What every token of one window finds, the heads side by side [T, C]."""
    # A leading dimension of 1: fused attention takes batches.
    query_1HTe, key_1HTe, value_1HTc = (
        each.unflatten(1, (num_heads, -1)).transpose(0, 1)[None] for each in (query_TE, key_TE, value_TC)
    )
    found_1HTc = scaled_dot_product_attention(query_1HTe, key_1HTe, value_1HTc, is_causal=True)
    return found_1HTc[0].transpose(0, 1).flatten(1)
