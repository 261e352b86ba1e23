"""The canonical SAE, and what happens to a hidden state before its encoder and after its decoder.

Every supported family is brought to this one form when it is loaded:

    x   = normalise_input(z)                    per token, or the identity
    u   = x W_encᵀ + bias                       the bias holds every shift of the input, summed in float64
    a   = rule(u)                               Threshold, TopK, GroupMax or MatchingPursuit
    ẑ   = undo_norm(a W_dec + b_dec + beside)

MatchingPursuit alone needs more than u: it begins with it and goes on from what its latents leave of x - b_dec.

What the decoder adds beside its latents is nothing, or one of two:

    x W_skip        of a transcoder, which is the same thing with two ends: it reads one site and writes another
                    (`SaeFacts.reads`), maybe with a skip connection
    predicted       of a temporal SAE, which predicts a part of x from the earlier tokens of the window and encodes the
                    novel rest in place of x (`temporal.predict`). It alone needs to know which tokens are one window,
                    and holds dense arrays [tokens of one window, C] while it predicts

Neither depends on a latent. So a kernel needs few encode rules and one decoder, and a latent's effective decoder row is
its row of W_dec times one factor per token, which `scale_gradient` moves onto the gradient.

Shapes: N tokens, C latents, D width of a site: in an encoder of the one that is read, in a decoder of the one that is
written.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.temporal import Prediction

LAYER_NORM_EPS = 1e-5  # SAELens adds it to the standard deviation, and leaves it out when it undoes the norm


class InputNorm(StrEnum):
    """What is done per token before encoding and undone after decoding. Fixed factors are folded into the weights."""

    NONE = "none"
    LAYER_NORM = "layer_norm"
    CONSTANT_NORM = "constant_norm"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Threshold:
    """A latent is active iff u > threshold (strict, in float32); its value is relu(scale * u + offset).

    Where `negative_threshold_C` is given, u < -negative_threshold is active too, and the value is u itself: the
    two-sided rule has no value map. Exact zeros count as inactive. All tensors are float32 [C].
    """

    threshold_C: Tensor
    negative_threshold_C: Tensor | None = None
    scale_C: Tensor | None = None
    offset_C: Tensor | None = None

    def __post_init__(self) -> None:
        if self.negative_threshold_C is not None and (self.scale_C is not None or self.offset_C is not None):
            raise SaeError("a two-sided threshold rule has no value map; give negative_threshold_C or scale_C/offset_C")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The k largest u, if positive (`signed`: the k largest |u|, if not zero); ties go to the smaller latent."""

    k: int
    signed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMax:
    """The largest u of each of `groups` runs of C / groups neighbouring latents, if positive; ties as of TopK."""

    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingPursuit:
    """Steps of a residual that is x - b_dec at first; the encoder is the decoder, W_enc = W_dec.

    A step takes the latent c of largest ⟨residual, W_dec[c]⟩, if positive, adds the product to its activation and takes
    so much of W_dec[c] off the residual; ties go to the smaller latent. A latent is active iff it was taken at least
    once; its activation is positive. A token is done where nothing is positive, or after a step that was the last of
    `max_iterations`, took a latent once more (`stop_on_repeat`) or left a residual of norm below `residual_threshold`.
    """

    max_iterations: int
    residual_threshold: float  # in the units of x; 0: never
    stop_on_repeat: bool


Rule: TypeAlias = Threshold | TopK | GroupMax | MatchingPursuit


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeFacts:
    """What the files say about an SAE: provenance, where it belongs, and how its training used the model."""

    source: str  # as the user gave it
    format: str
    architecture: str  # as the file names it
    site: str | None = None  # what the decoder writes: module path in the transformers model, e.g. "model.layers.18"
    hook_name: str | None = None  # TransformerLens spelling of the site
    reads: str | None = None  # what the encoder reads, in either spelling; None: the site itself
    writes: tuple[
        str, ...
    ] = ()  # of a cross-layer transcoder: all written sites, in the order of the decoder's columns
    model_name: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    published_l0: float | None = None
    published_fvu: float | None = None
    digest: str  # SHA-256 over the files, and over a normalisation factor given by hand
    num_latents: int
    d_in: int  # width that the encoder reads
    dtype: str = "float32"  # of the two matrices in memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sae:
    """One canonical SAE: u = x W + b, then the rule."""

    w_enc_CD: Tensor  # contiguous; float32, or half where asked; w_dec_CD itself where the weights are tied
    w_dec_CD: Tensor  # contiguous; same dtype as w_enc_CD
    bias_C: Tensor  # float32
    b_dec_D: Tensor  # float32
    rule: Rule
    input_norm: InputNorm
    facts: SaeFacts
    w_skip_DD: Tensor | None = None  # float32; a transcoder's linear path beside its latents
    prediction: Prediction | None = None  # of a temporal SAE, whose bias is 0

    @property
    def num_latents(self) -> int:
        return self.w_dec_CD.shape[0]

    @property
    def d_in(self) -> int:
        """Width that the encoder reads."""
        return self.w_enc_CD.shape[1]

    @property
    def d_out(self) -> int:
        """Width that the decoder writes."""
        return self.w_dec_CD.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputStats:
    """What the decoder undoes: ẑ = scale * (a W_dec + b_dec) + shift. None where there is nothing to undo."""

    scale_N: Tensor | None = None  # float32
    shift_N: Tensor | None = None  # float32, added to every component


def normalise_input(sae: Sae, hidden_ND: Tensor) -> tuple[Tensor, InputStats]:
    """Bring hidden states [N, D] of any float dtype to what the encoder reads: (x_ND, statistics).

    x is the hidden state as it is where there is no normalisation, and float32 elsewhere. A hidden state of zeros
    normalises to zeros. Raises SaeError where the width is not the SAE's.
    """
    if hidden_ND.ndim != 2 or hidden_ND.shape[1] != sae.d_in:
        raise SaeError(
            f"hidden states have shape {tuple(hidden_ND.shape)}, the SAE {sae.facts.source!r} expects "
            f"[tokens, {sae.d_in}]; use the SAE with the model and site that it was trained on"
            + (f" ({sae.facts.model_name}, {sae.facts.site or sae.facts.hook_name})" if sae.facts.model_name else "")
        )
    match sae.input_norm:
        case InputNorm.NONE:
            return hidden_ND, InputStats()
        case InputNorm.LAYER_NORM:
            return _layer_norm(hidden_ND.float())
        case InputNorm.CONSTANT_NORM:
            return _constant_norm(hidden_ND.float())


def _layer_norm(hidden_ND: Tensor) -> tuple[Tensor, InputStats]:
    mean_N1 = hidden_ND.mean(dim=1, keepdim=True)
    centred_ND = hidden_ND - mean_N1
    std_N1 = centred_ND.std(dim=1, keepdim=True)
    x_ND = centred_ND / (std_N1 + LAYER_NORM_EPS)
    return x_ND, InputStats(scale_N=std_N1.squeeze(1), shift_N=mean_N1.squeeze(1))


def _constant_norm(hidden_ND: Tensor) -> tuple[Tensor, InputStats]:
    scale_N1 = hidden_ND.norm(dim=1, keepdim=True) / hidden_ND.shape[1] ** 0.5
    x_ND = hidden_ND / scale_N1.clamp_min(torch.finfo(torch.float32).tiny)
    return x_ND, InputStats(scale_N=scale_N1.squeeze(1))


def undo_norm(sae: Sae, decoded_ND: Tensor, stats: InputStats) -> Tensor:
    """ẑ [N, D] from the decoder's output, what is beside the latents included, and the statistics of its tokens."""
    match sae.input_norm:
        case InputNorm.NONE:
            return decoded_ND
        case InputNorm.LAYER_NORM:
            return decoded_ND * _column(stats.scale_N) + _column(stats.shift_N)
        case InputNorm.CONSTANT_NORM:
            return decoded_ND * _column(stats.scale_N)


def scale_gradient(sae: Sae, grad_ND: Tensor, stats: InputStats) -> Tensor:
    """G' [N, D] such that ⟨G'[n], W_dec[c]⟩ = ∂m/∂a[n,c], from G = ∂m/∂ẑ [N, D].

    This is where the per-token factor of the effective decoder row goes, statistics held constant.
    """
    if sae.input_norm is InputNorm.NONE:
        return grad_ND
    return grad_ND * _column(stats.scale_N)


def without_latents(sae: Sae, beside_ND: Tensor, stats: InputStats) -> Tensor:
    """ẑ with no latent active, bias and what is beside alone [N, D]: Σ_c g[n,c] = ⟨G[n], ẑ[n] - without_latents[n]⟩.

    `beside_ND` is zero where the SAE has nothing beside its latents; `stats` are what `normalise_input` returned.
    """
    return undo_norm(sae, sae.b_dec_D + beside_ND, stats)


def _column(values_N: Tensor | None) -> Tensor:
    if values_N is None:
        raise SaeError(
            "the input statistics do not belong to this SAE; pass what normalise_input returned for the batch"
        )
    return values_N.unsqueeze(1)
