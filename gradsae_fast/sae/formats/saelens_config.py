"""`cfg.json` of a SAELens folder, of any release, as one typed value.

Before release 6 the file was flat (no `metadata`) and used other names and defaults; it is brought to today's form
first. Whatever would change the mathematics and is not known is an error that names it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import MatchingPursuit
from gradsae_fast.sae.formats.saelens_temporal import TEMPORAL_NORMALISATIONS, TemporalOptions, read_temporal
from gradsae_fast.sae.formats.settings import check_k, read_json, read_optional, read_size

KEYS: Mapping[str, tuple[str, ...]] = {  # architecture -> tensors of its weight file
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "gated": ("W_enc", "W_dec", "b_gate", "b_mag", "r_mag", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "abstopk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "matching_pursuit": ("W_dec", "b_dec"),
    "transcoder": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "skip_transcoder": ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip"),
    "jumprelu_transcoder": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "jumprelu_skip_transcoder": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"),
}
ARCHITECTURES = (*KEYS, "temporal")  # whose tensors depend on its options (`saelens_temporal`)
TOP_K = ("topk", "abstopk")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
RENAMED_IN_6 = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SaelensConfig:
    """What `cfg.json` says, in today's terms."""

    architecture: str
    d_in: int
    d_out: int  # that of the site which is written
    d_sae: int
    apply_b_dec_to_input: bool
    normalize_activations: str
    k: int | None  # of the top-k families
    pursuit: MatchingPursuit | None  # of matching_pursuit
    temporal: TemporalOptions | None  # of temporal
    rescale_acts_by_decoder_norm: bool
    site: str | None  # that is written
    hook_name: str | None
    reads: str | None  # None: the site itself
    model_name: str | None
    prepend_bos: bool | None
    context_size: int | None
    l0: float | None
    fvu: float | None


def read_config(path: Path) -> SaelensConfig:
    """The configuration at `path`. Raises SaeError on what is missing, of a wrong type, unknown or contradictory."""
    raw = _upgrade(read_json(path), path)
    architecture = _one_of(raw, "architecture", ARCHITECTURES, path)
    _check_activation(raw, path)
    d_in, d_sae = read_size(raw, "d_in", path), read_size(raw, "d_sae", path)
    metadata = raw["metadata"]
    transcodes = is_transcoder(architecture)
    if transcodes:
        _check_transcoder(raw, path)
    else:
        _check_one_site(metadata, architecture, path)
    out = "_out" if transcodes else ""
    temporal = read_temporal(raw, d_sae, path) if architecture == "temporal" else None
    normalisations = NORMALISATIONS if temporal is None else TEMPORAL_NORMALISATIONS
    return SaelensConfig(
        architecture=architecture,
        d_in=d_in,
        d_out=read_size(raw, "d_out", path) if transcodes else d_in,
        d_sae=d_sae,
        apply_b_dec_to_input=read_optional(raw, "apply_b_dec_to_input", bool, path) is not False,
        normalize_activations=_one_of(raw, "normalize_activations", normalisations, path),
        k=check_k(raw.get("k"), d_sae, path) if architecture in TOP_K else None,
        pursuit=_pursuit(raw, d_in, path) if architecture == "matching_pursuit" else None,
        temporal=temporal,
        rescale_acts_by_decoder_norm=architecture in TOP_K
        and read_optional(raw, "rescale_acts_by_decoder_norm", bool, path) is True,
        site=read_optional(metadata, f"hf_hook_name{out}", str, path),
        hook_name=read_optional(metadata, f"hook_name{out}", str, path),
        reads=_reads(metadata, path) if transcodes else None,
        model_name=read_optional(metadata, "model_name", str, path),
        prepend_bos=read_optional(metadata, "prepend_bos", bool, path),
        context_size=read_optional(metadata, "context_size", int, path),
        l0=_measured(metadata, "l0", path),
        fvu=_fvu(metadata, path),
    )


def _upgrade(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    raw = {RENAMED_IN_6.get(key, key): value for key, value in raw.items()}
    if "metadata" not in raw:
        raw = _nest(raw)
    if not isinstance(raw["metadata"], dict):
        raise SaeError(f"metadata in {path} is {raw['metadata']!r}, expected an object")
    norm = raw.get("normalize_activations")
    if norm is None or isinstance(norm, bool):
        raw["normalize_activations"] = "expected_average_only_in" if norm else "none"
    return raw


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    """From before release 6, with the defaults of its time: standard, BOS in front, top-k as an activation."""
    metadata = {"prepend_bos": True, **flat}
    upgraded = {"architecture": "standard", **flat, "metadata": metadata}
    if flat.get("activation_fn") == "topk" and upgraded["architecture"] in ("standard", "topk"):
        upgraded["architecture"] = "topk"
        upgraded["k"] = (flat.get("activation_fn_kwargs") or {}).get("k", flat.get("k"))
    return upgraded


def _check_activation(raw: Mapping[str, Any], path: Path) -> None:
    """Only old configurations name the activation; it must be the one that the architecture stands for."""
    activation, architecture = raw.get("activation_fn", "relu"), raw["architecture"]
    if activation != "relu" and not (activation == "topk" and architecture == "topk"):
        raise SaeError(
            f"{path} says activation {activation!r} for the architecture {architecture!r}; "
            "supported: relu, and topk with a standard or topk architecture"
        )


def is_transcoder(architecture: str) -> bool:
    """Whether SAEs of the architecture read one site and write another."""
    return "transcoder" in architecture


def _check_one_site(metadata: Mapping[str, Any], architecture: str, path: Path) -> None:
    for key in ("hook_name", "hf_hook_name"):
        reads, writes = metadata.get(key), metadata.get(f"{key}_out")
        if writes is not None and writes != reads:
            raise SaeError(
                f"{path} reads {reads} and writes {writes}, but its architecture {architecture!r} is of one site; "
                f"expected a transcoder's, such as 'jumprelu_transcoder', or no {key}_out. Correct the configuration"
            )


def _check_transcoder(raw: Mapping[str, Any], path: Path) -> None:
    """What SAELens' transcoders do not have, and what it does to them that has no inverse at the site they write."""
    if raw.get("apply_b_dec_to_input") is not False:
        raise SaeError(
            f"apply_b_dec_to_input in {path} is {raw.get('apply_b_dec_to_input')!r}, expected false: the b_dec of a "
            "transcoder belongs to the site that it writes. Correct the configuration"
        )
    norm = raw["normalize_activations"]
    if norm != "none":
        raise SaeError(
            f"normalize_activations in {path} is {norm!r}; supported for a transcoder: none. SAELens normalises what "
            "it reads and undoes nothing at the site that it writes"
        )


def _pursuit(raw: Mapping[str, Any], d_in: int, path: Path) -> MatchingPursuit:
    """The rule of a matching pursuit SAE, with SAELens' defaults. SAELens refuses its whitening too."""
    norm = raw["normalize_activations"]
    if norm == "covariance_whitening":
        raise SaeError(
            f"normalize_activations in {path} is {norm!r}, which matching pursuit cannot take: folded, it would "
            "make two matrices of the one that encodes and decodes. Correct the configuration"
        )
    threshold = raw.get("residual_threshold", 1e-2)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise SaeError(f"residual_threshold in {path} is {threshold!r}, expected a finite number; 0 or less for none")
    return MatchingPursuit(
        max_iterations=d_in if raw.get("max_iterations") is None else read_size(raw, "max_iterations", path),
        residual_threshold=max(0.0, float(threshold)),
        stop_on_repeat=read_optional(raw, "stop_on_duplicate_support", bool, path) is not False,
    )


def _reads(metadata: Mapping[str, Any], path: Path) -> str:
    """The site that a transcoder reads, by the module's path where there is one."""
    found = read_optional(metadata, "hf_hook_name", str, path) or read_optional(metadata, "hook_name", str, path)
    if found is None:
        raise SaeError(
            f"metadata in {path} names no site that the transcoder reads; expected hook_name (read) and hook_name_out "
            "(written), such as blocks.3.hook_resid_mid and blocks.3.hook_mlp_out. Add them"
        )
    return found


def _one_of(raw: Mapping[str, Any], key: str, supported: tuple[str, ...], path: Path) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or value not in supported:
        hint = ""
        if isinstance(value, str) and "batchtopk" in value:
            hint = "; a training checkpoint: SAELens' save_inference_model stores it as jumprelu, which is supported"
        raise SaeError(f"{key} in {path} is {value!r}; supported: {', '.join(supported)}{hint}")
    return value


def _measured(metadata: Mapping[str, Any], key: str, path: Path) -> float | None:
    """A published measurement; SAELens writes NaN for one that was never taken."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SaeError(f"{key} in {path} is {value!r}, expected a number; correct the configuration")
    return float(value) if math.isfinite(value) else None


def _fvu(metadata: Mapping[str, Any], path: Path) -> float | None:
    explained = _measured(metadata, "explained_variance", path)
    return _measured(metadata, "fvu", path) if explained is None else 1.0 - explained
