"""`cfg.json` of a SAELens folder, of any release, as one typed value.

Before release 6 the file was flat (no `metadata`) and used other names and defaults; it is brought to today's form
first. Whatever would change the mathematics and is not known is an error that names it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gradsae_fast.errors import SaeError

KEYS: Mapping[str, tuple[str, ...]] = {  # architecture -> tensors of its weight file
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "gated": ("W_enc", "W_dec", "b_gate", "b_mag", "r_mag", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "abstopk": ("W_enc", "W_dec", "b_enc", "b_dec"),
}
TOP_K = ("topk", "abstopk")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
RENAMED_IN_6 = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaelensConfig:
    """What `cfg.json` says, in today's terms."""

    architecture: str
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool
    normalize_activations: str
    k: int | None  # of the top-k families
    rescale_acts_by_decoder_norm: bool
    site: str | None
    hook_name: str | None
    model_name: str | None
    prepend_bos: bool | None
    context_size: int | None
    l0: float | None
    fvu: float | None


def read_config(path: Path) -> SaelensConfig:
    """The configuration at `path`. Raises SaeError on what is missing, of a wrong type, unknown or contradictory."""
    raw = _upgrade(read_json(path), path)
    architecture = _one_of(raw, "architecture", tuple(KEYS), path)
    _check_activation(raw, path)
    d_in, d_sae = _size(raw, "d_in", path), _size(raw, "d_sae", path)
    metadata = raw["metadata"]
    _check_not_transcoder(metadata, path)
    return SaelensConfig(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        apply_b_dec_to_input=_optional(raw, "apply_b_dec_to_input", bool, path) is not False,
        normalize_activations=_one_of(raw, "normalize_activations", NORMALISATIONS, path),
        k=_k(raw, d_sae, path) if architecture in TOP_K else None,
        rescale_acts_by_decoder_norm=architecture in TOP_K
        and _optional(raw, "rescale_acts_by_decoder_norm", bool, path) is True,
        site=_optional(metadata, "hf_hook_name", str, path),
        hook_name=_optional(metadata, "hook_name", str, path),
        model_name=_optional(metadata, "model_name", str, path),
        prepend_bos=_optional(metadata, "prepend_bos", bool, path),
        context_size=_optional(metadata, "context_size", int, path),
        l0=_measured(metadata, "l0", path),
        fvu=_fvu(metadata, path),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at `path`. Raises SaeError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SaeError(f"{path} is missing; fetch or copy the whole SAE folder") from error
    except (OSError, ValueError) as error:
        raise SaeError(f"{path} is not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise SaeError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


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


def _check_not_transcoder(metadata: Mapping[str, Any], path: Path) -> None:
    for key in ("hook_name", "hf_hook_name"):
        reads, writes = metadata.get(key), metadata.get(f"{key}_out")
        if writes is not None and writes != reads:
            raise SaeError(f"{path} reads {reads!r} and writes {writes!r}: a transcoder; supported: SAEs of one site")


def _one_of(raw: Mapping[str, Any], key: str, supported: tuple[str, ...], path: Path) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or value not in supported:
        hint = ""
        if isinstance(value, str) and "batchtopk" in value:
            hint = "; a training checkpoint: SAELens' save_inference_model stores it as jumprelu, which is supported"
        raise SaeError(f"{key} in {path} is {value!r}; supported: {', '.join(supported)}{hint}")
    return value


def _optional(raw: Mapping[str, Any], key: str, kind: type[T], path: Path) -> T | None:
    value = raw.get(key)
    # True is an int to Python and a mistake to us.
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    raise SaeError(f"{key} in {path} is {value!r}, expected {kind.__name__}; correct the configuration")


def _size(raw: Mapping[str, Any], key: str, path: Path) -> int:
    size = _optional(raw, key, int, path)
    if size is None or size < 1:
        raise SaeError(f"{key} in {path} is {size!r}, expected a positive whole number")
    return size


def _k(raw: Mapping[str, Any], num_latents: int, path: Path) -> int:
    k = raw.get("k")
    if isinstance(k, bool) or not isinstance(k, int | float) or not 1 <= k <= num_latents or k != int(k):
        raise SaeError(f"k in {path} is {k!r}, expected a whole number from 1 to {num_latents}")
    return int(k)


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
