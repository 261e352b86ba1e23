"""From the weights as a file has them to the canonical weights: every fixed transformation, once.

A stored SAE reads x = (s·z - mean) M, subtracts b_dec where its family does, and maps its reconstruction back. Both
maps are affine, so they vanish into weights and biases:

    factor s          W_enc · s,  W_dec / s,  b_dec / s
    decoder norms     W_enc[c] · ‖W_dec[c]‖,  bias[c] · ‖W_dec[c]‖,  W_dec[c] / ‖W_dec[c]‖
    whitening M       M W_enc,  W_dec M⁻¹,  b_dec M⁻¹ + mean
    input shift       bias - shift W_enc, in float64

in this order, which is SAELens' own: a checkpoint folded here and the same checkpoint folded by SAELens agree in their
activations, not only in their reconstructions.

Matching pursuit has one matrix, whose rows keep their norms: a factor s divides its latents, b_dec and the norm at
which it stops instead. It takes no other fold, because each would change which latents it takes.

A temporal SAE measures what is left of x against its decoder before it encodes it, so its input shift stays apart and
its factor s goes elsewhere: W_dec / s, b_dec / s, shift / s, eps / s, and into the scale of its codes, once where the
encoder is a matrix of its own and twice where it is W_dec / s. It takes no other fold.

The skip path of a transcoder takes x as the encoder reads it, and none of the transformations above.

Shapes: D width that is read or written (they may differ), C latents. The encoder is stored one latent per row, as the
kernels read it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import InputNorm, MatchingPursuit, Rule, Sae, SaeFacts, Threshold
from gradsae_fast.sae.temporal import Attention, Prediction

ROWS_PER_TILE = 8192  # bounds the float64 copy of a weight matrix
STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Whitening:
    """x = (z - mean) M and back, z = x M⁻¹ + mean; float64."""

    mean_D: Tensor
    matrix_DD: Tensor
    inverse_DD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredSae:
    """An SAE as its files describe it, checked but not yet folded. MatchingPursuit reads w_dec_CD alone.

    Of a temporal SAE the prediction's shift is what is subtracted; where its weights are tied, both matrices are one
    tensor.
    """

    w_enc_CD: Tensor
    w_dec_CD: Tensor
    b_enc_C: Tensor | None  # None where the family has no shared encoder bias
    b_dec_D: Tensor
    rule: Rule
    subtract_b_dec: bool  # from the encoder's input
    input_norm: InputNorm = InputNorm.NONE
    rescale_by_decoder_norm: bool = False
    norm_factor: float = 1.0
    whitening: Whitening | None = None
    w_skip_DD: Tensor | None = None  # ẑ gains x W_skip, x as the encoder reads it
    prediction: Prediction | None = None  # of a temporal SAE, in the units of s·z


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """Weights on their way: u = (x - shift) W_enc + bias. Matrices float32, vectors float64."""

    w_enc_CD: Tensor
    w_dec_CD: Tensor
    bias_C: Tensor
    b_dec_D: Tensor
    shift_D: Tensor


def fold(stored: StoredSae, *, facts: SaeFacts, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE on `device`, its two matrices in `dtype`. Raises SaeError where `dtype` cannot hold them."""
    if dtype not in STORAGE_DTYPES:
        supported = ", ".join(_name(each) for each in STORAGE_DTYPES)
        raise SaeError(f"an SAE cannot be kept in {_name(dtype)}; supported: {supported}")
    tied = False
    if isinstance(stored.rule, MatchingPursuit):
        stored, tied = _fold_pursuit(stored, facts), True
    elif stored.prediction is not None:
        stored, tied = _fold_prediction(stored, facts), stored.w_enc_CD is stored.w_dec_CD
    parts = _fold_factor(_parts(stored), stored.norm_factor)
    if stored.rescale_by_decoder_norm:
        parts = _fold_decoder_norm(parts)
    if stored.whitening is not None:
        parts = _fold_whitening(parts, stored.whitening)
    w_enc_CD = _store(parts.w_enc_CD, dtype, facts)
    # From the stored encoder, not from the exact one: after rounding to half, u must still be (x - shift) times the
    # same weights, or a large shift leaves its rounding error in every pre-activation.
    bias_C = _subtract_shift(parts.bias_C, w_enc_CD, parts.shift_D)
    w_enc_CD = w_enc_CD.to(device)
    return Sae(
        w_enc_CD=w_enc_CD,
        w_dec_CD=w_enc_CD if tied else _store(parts.w_dec_CD, dtype, facts).to(device),
        bias_C=_store(bias_C, torch.float32, facts).to(device),
        b_dec_D=_store(parts.b_dec_D, torch.float32, facts).to(device),
        rule=_place(stored.rule, device),
        input_norm=stored.input_norm,
        facts=replace(facts, dtype=_name(dtype)),
        w_skip_DD=None if stored.w_skip_DD is None else _store(stored.w_skip_DD, torch.float32, facts).to(device),
        prediction=None if stored.prediction is None else _place_prediction(stored.prediction, device, facts),
    )


def _parts(stored: StoredSae) -> _Parts:
    b_dec_D = stored.b_dec_D.double()
    bias_C = torch.zeros(len(stored.w_enc_CD)) if stored.b_enc_C is None else stored.b_enc_C
    return _Parts(
        w_enc_CD=stored.w_enc_CD.float(),
        w_dec_CD=stored.w_dec_CD.float(),
        bias_C=bias_C.double(),
        b_dec_D=b_dec_D,
        shift_D=b_dec_D if stored.subtract_b_dec else torch.zeros(stored.w_enc_CD.shape[1], dtype=torch.float64),
    )


def _fold_pursuit(stored: StoredSae, facts: SaeFacts) -> StoredSae:
    """Matching pursuit without its factor s: s·z - b_dec is s times z - b_dec / s, and so is every residual."""
    assert isinstance(stored.rule, MatchingPursuit)
    _check_bare(stored, facts, kind="matching pursuit", subtracts=True, reason="its one matrix encodes and decodes")
    return replace(
        stored,
        w_enc_CD=stored.w_dec_CD,
        b_dec_D=stored.b_dec_D.double() / stored.norm_factor,
        rule=replace(stored.rule, residual_threshold=stored.rule.residual_threshold / stored.norm_factor),
        norm_factor=1.0,
    )


def _fold_prediction(stored: StoredSae, facts: SaeFacts) -> StoredSae:
    """A temporal SAE without its factor s, its weights tied as they were."""
    assert stored.prediction is not None
    reason = "what it predicts is measured against its decoder as it is"
    _check_bare(stored, facts, kind="temporal", subtracts=False, reason=reason)
    factor, tied, prediction = stored.norm_factor, stored.w_enc_CD is stored.w_dec_CD, stored.prediction
    w_dec_CD = stored.w_dec_CD.float() / factor
    return replace(
        stored,
        w_enc_CD=w_dec_CD if tied else stored.w_enc_CD,
        w_dec_CD=w_dec_CD,
        b_dec_D=stored.b_dec_D.double() / factor,
        prediction=replace(
            prediction,
            shift_D=prediction.shift_D.double() / factor,
            scale=prediction.scale * factor * (factor if tied else 1.0),
            eps=prediction.eps / factor,
        ),
        norm_factor=1.0,
    )


def _check_bare(stored: StoredSae, facts: SaeFacts, *, kind: str, subtracts: bool, reason: str) -> None:
    """SaeError where an SAE whose matrices stay as they are comes with what would have to go into them."""
    parts = {
        "a decoder norm": stored.rescale_by_decoder_norm,
        "a whitening": stored.whitening is not None,
        "an encoder bias": stored.b_enc_C is not None,
        "a skip connection": stored.w_skip_DD is not None,
        "a b_dec that is added alone": subtracts and not stored.subtract_b_dec,
        "a b_dec that is subtracted twice": stored.subtract_b_dec and not subtracts,
    }
    if found := [part for part, is_there in parts.items() if is_there]:
        raise SaeError(f"the {kind} SAE {facts.source!r} comes with {' and '.join(found)}; expected none: {reason}")


def _fold_factor(parts: _Parts, factor: float) -> _Parts:
    if factor == 1.0:
        return parts
    return replace(
        parts,
        w_enc_CD=parts.w_enc_CD * factor,
        w_dec_CD=parts.w_dec_CD / factor,
        b_dec_D=parts.b_dec_D / factor,
        shift_D=parts.shift_D / factor,
    )


def _fold_decoder_norm(parts: _Parts) -> _Parts:
    norm_C = torch.linalg.vector_norm(parts.w_dec_CD, dim=1, dtype=torch.float64)
    # A row of zeros gives its latent u = 0, which the top-k rule never keeps: any divisor will do.
    divisor_C = torch.where(norm_C > 0, norm_C, 1.0)
    return replace(
        parts,
        w_enc_CD=parts.w_enc_CD * norm_C.float().unsqueeze(1),
        w_dec_CD=parts.w_dec_CD / divisor_C.float().unsqueeze(1),
        bias_C=parts.bias_C * norm_C,
    )


def _fold_whitening(parts: _Parts, whitening: Whitening) -> _Parts:
    return replace(
        parts,
        w_enc_CD=_times(parts.w_enc_CD, whitening.matrix_DD.T),
        w_dec_CD=_times(parts.w_dec_CD, whitening.inverse_DD),
        b_dec_D=parts.b_dec_D @ whitening.inverse_DD + whitening.mean_D,
        shift_D=parts.shift_D @ whitening.inverse_DD + whitening.mean_D,
    )


def _times(rows_CD: Tensor, matrix_DD: Tensor) -> Tensor:
    """The product in float64, a tile of rows at a time."""
    return torch.cat([(tile.double() @ matrix_DD).float() for tile in rows_CD.split(ROWS_PER_TILE)])


def _subtract_shift(bias_C: Tensor, w_enc_CD: Tensor, shift_D: Tensor) -> Tensor:
    if not shift_D.any():
        return bias_C
    return bias_C - torch.cat([tile.double() @ shift_D for tile in w_enc_CD.split(ROWS_PER_TILE)])


def _store(values: Tensor, dtype: torch.dtype, facts: SaeFacts) -> Tensor:
    """A contiguous copy: the file may be replaced while the SAE is in use."""
    stored = values.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(stored).all():
        raise SaeError(f"weights of {facts.source!r} overflow {_name(dtype)}; load the SAE in bfloat16 or float32")
    return stored


def _place(rule: Rule, device: str | torch.device) -> Rule:
    """Per-latent tensors of the rule on the device, in float32 whatever the storage dtype of the weights is."""
    if not isinstance(rule, Threshold):
        return rule

    def place(values_C: Tensor | None) -> Tensor | None:
        return None if values_C is None else values_C.to(device, torch.float32, copy=True)

    return Threshold(
        threshold_C=rule.threshold_C.to(device, torch.float32, copy=True),
        negative_threshold_C=place(rule.negative_threshold_C),
        scale_C=place(rule.scale_C),
        offset_C=place(rule.offset_C),
    )


def _place_prediction(prediction: Prediction, device: str | torch.device, facts: SaeFacts) -> Prediction:
    """Every tensor of it on the device, in float32 whatever the storage dtype of the weights is."""

    def place(values: Tensor) -> Tensor:
        return _store(values, torch.float32, facts).to(device)

    layers = [
        Attention(
            w_query_EC=place(layer.w_query_EC),
            b_query_E=place(layer.b_query_E),
            w_key_EC=place(layer.w_key_EC),
            b_key_E=place(layer.b_key_E),
            w_value_CC=place(layer.w_value_CC),
            b_value_C=place(layer.b_value_C),
            w_out_CC=place(layer.w_out_CC),
            b_out_C=place(layer.b_out_C),
            num_heads=layer.num_heads,
        )
        for layer in prediction.layers
    ]
    return replace(prediction, layers=tuple(layers), shift_D=place(prediction.shift_D))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
