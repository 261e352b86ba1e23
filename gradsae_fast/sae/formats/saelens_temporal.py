"""Temporal SAEs in SAELens' layout: their options in `cfg.json`, and the attention in the weight file.

Beside W_dec, b_dec and (where the weights are not tied) W_enc, each layer of attention has four maps with a bias,
`attn_layers.<i>.{q_target,k_ctx,v_ctx,c_proj}.{weight,bias}`. Keys and queries are d_sae / bottleneck_factor wide, all
heads together. There is no encoder bias. b_dec is added to the reconstruction unless the weights are tied and
`apply_b_dec_to_input` is false.

`expected_average_only_in` is refused. SAELens admits the name, but computes without any factor and raises
NotImplementedError where one is to be folded in: such a file does not say which hidden states its weights are for.

Letters: C latents, D width, E width of all keys of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Rule, Threshold, TopK
from gradsae_fast.sae.formats.settings import check_k, read_optional, read_positive, read_size
from gradsae_fast.sae.temporal import Attention, Prediction

EPS = 1e-6  # SAELens adds it to the norm of what a layer predicts
TEMPORAL_NORMALISATIONS = (
    "none",
    "constant_norm_rescale",
    "constant_scalar_rescale",
    "layer_norm",
)
MAPS = ("q_target", "k_ctx", "v_ctx", "c_proj")  # query, key, value, out


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalOptions:
    """What `cfg.json` says of a temporal SAE alone, with SAELens' defaults."""

    num_heads: int
    num_layers: int
    key_width: int  # of all heads together
    k: int | None  # None: every positive latent
    tied: bool
    factor: float  # that the input is multiplied by; 1 unless normalised by constant_scalar_rescale


def read_temporal(raw: Mapping[str, Any], d_sae: int, path: Path) -> TemporalOptions:
    """The options of a temporal SAE. Raises SaeError on what is of a wrong type, unknown or contradictory."""
    full = {"n_heads": 8, "n_attn_layers": 1, "bottleneck_factor": 64, "activation_normalization_factor": 1.0, **raw}
    num_heads, bottleneck = read_size(full, "n_heads", path), read_size(full, "bottleneck_factor", path)
    if d_sae % (num_heads * bottleneck):
        raise SaeError(
            f"d_sae in {path} is {d_sae}, expected a multiple of n_heads x bottleneck_factor = {num_heads} x "
            f"{bottleneck}: keys of {d_sae} / {bottleneck} are shared out among the heads. Correct the configuration"
        )
    _check_normalisation(full.get("normalize_activations"), path)
    kind = full.get("sae_diff_type", "topk")
    if kind not in ("topk", "relu"):
        raise SaeError(f"sae_diff_type in {path} is {kind!r}; supported: topk, relu")
    k = full.get("kval_topk") if kind == "topk" else None
    rescaled = full.get("normalize_activations") == "constant_scalar_rescale"
    return TemporalOptions(
        num_heads=num_heads,
        num_layers=read_size(full, "n_attn_layers", path, least=0),
        key_width=d_sae // bottleneck,
        k=None if k is None else check_k(k, d_sae, path, key="kval_topk"),
        tied=read_optional(full, "tied_weights", bool, path) is not False,
        factor=read_positive(full, "activation_normalization_factor", path) if rescaled else 1.0,
    )


def _check_normalisation(name: object, path: Path) -> None:
    if name == "expected_average_only_in":
        raise SaeError(
            f"normalize_activations in {path} is {name!r}, for which SAELens applies no factor to a temporal SAE and "
            "cannot fold one in, so the file leaves open what its weights read. Correct the configuration: 'none' if "
            "they read hidden states as they are (what SAELens computes), or 'constant_scalar_rescale' with "
            "activation_normalization_factor, the factor of its training"
        )


def temporal_rule(options: TemporalOptions, d_sae: int) -> Rule:
    """Which novel latents are active: the k largest positive ones, or every positive one."""
    return Threshold(threshold_C=torch.zeros(d_sae)) if options.k is None else TopK(k=options.k)


def temporal_shapes(options: TemporalOptions, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the weight file, and its shape."""
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if not options.tied:
        shapes["W_enc"] = (d_in, d_sae)
    for layer in range(options.num_layers):
        for name in MAPS:
            width = options.key_width if name in ("q_target", "k_ctx") else d_sae
            shapes[f"attn_layers.{layer}.{name}.weight"] = (width, d_sae)
            shapes[f"attn_layers.{layer}.{name}.bias"] = (width,)
    return shapes


def read_prediction(options: TemporalOptions, tensors: Mapping[str, Tensor], *, subtract_b_dec: bool) -> Prediction:
    """The attention of a weight file that has all of `temporal_shapes`; SAELens scales all codes by 1 / (4 d_in)."""
    b_dec_D = tensors["b_dec"]
    return Prediction(
        layers=tuple(_attention(options, tensors, f"attn_layers.{layer}") for layer in range(options.num_layers)),
        shift_D=b_dec_D if subtract_b_dec else torch.zeros_like(b_dec_D),
        scale=1 / (4 * len(b_dec_D)),
        eps=EPS,
    )


def _attention(options: TemporalOptions, tensors: Mapping[str, Tensor], prefix: str) -> Attention:
    def tensor(name: str, part: str) -> Tensor:
        return tensors[f"{prefix}.{name}.{part}"]

    return Attention(
        w_query_EC=tensor("q_target", "weight"),
        b_query_E=tensor("q_target", "bias"),
        w_key_EC=tensor("k_ctx", "weight"),
        b_key_E=tensor("k_ctx", "bias"),
        w_value_CC=tensor("v_ctx", "weight"),
        b_value_C=tensor("v_ctx", "bias"),
        w_out_CC=tensor("c_proj", "weight"),
        b_out_C=tensor("c_proj", "bias"),
        num_heads=options.num_heads,
    )
