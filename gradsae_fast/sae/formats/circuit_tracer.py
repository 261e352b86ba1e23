"""Sets of transcoders for circuit-tracer: `layer_<n>.safetensors`, one of a layer, beside `config.yaml`.

    latents          relu(h) where h = z W_encᵀ + b_enc; only above activation_function.threshold where the file has one
    reconstruction   latents W_dec + b_dec, plus z W_skipᵀ where the file has W_skip

W_enc and W_dec are both [C, D]: a fact of the format. `config.yaml` names the base model and what the set reads and
writes, as hooks inside a layer: `feature_input_hook: mlp.hook_in`, `feature_output_hook: hook_mlp_out`.

Source: single_layer_transcoder.py of safety-research/circuit-tracer; mwhanna/qwen3-4b-transcoders and its kin. Shapes:
D width of both sites, C latents.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import read_optional, read_yaml
from gradsae_fast.sae.weights import (
    check_keys,
    check_not_negative,
    check_tensors,
    digest_files,
    read_safetensors,
    read_sizes,
)

CONFIG = "config.yaml"
FILES = ()  # named after a layer: see `files_of`
LAYOUT = "circuit-tracer file: layer_<n>.safetensors beside config.yaml"
BY_HAND = ()
NAME = re.compile(r"layer_(\d+)\.safetensors")
THRESHOLD, SKIP = "activation_function.threshold", "W_skip"


def matches(path: Path) -> bool:
    """Whether `path` is the file of one layer."""
    return path.is_file() and NAME.fullmatch(path.name) is not None


def files_of(name: str) -> tuple[str, ...]:
    """What is fetched with the file of one layer; nothing where `name` is no such file."""
    return (name, CONFIG) if NAME.fullmatch(name) else ()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of one layer's file. Raises SaeError without its configuration, and on damaged files."""
    config, file = read_yaml(path.parent / CONFIG), path.parent / CONFIG
    tensors, layer = _read(path), NAME.findall(path.name)[0]
    _check_activation(config, tensors, file)
    c, d = tensors["W_enc"].shape
    facts = SaeFacts(
        source=source,
        format="circuit_tracer",
        architecture=("jumprelu" if THRESHOLD in tensors else "relu") + "_skip" * (SKIP in tensors) + "_transcoder",
        hook_name=f"blocks.{layer}.{read_hook(config, 'feature_output_hook', file)}",
        reads=f"blocks.{layer}.{read_hook(config, 'feature_input_hook', file)}",
        model_name=read_optional(config, "model_name", str, file),
        digest=digest_files([path, file]),
        num_latents=c,
        d_in=d,
    )
    stored = StoredSae(
        w_enc_CD=tensors["W_enc"],
        w_dec_CD=tensors["W_dec"],
        b_enc_C=tensors["b_enc"],
        b_dec_D=tensors["b_dec"],
        rule=Threshold(threshold_C=tensors.get(THRESHOLD, torch.zeros(c))),
        subtract_b_dec=False,
        w_skip_DD=tensors[SKIP].T if SKIP in tensors else None,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def read_hook(config: Mapping[str, Any], key: str, file: Path) -> str:
    """A hook inside a layer; SaeError where the configuration names none."""
    hook = read_optional(config, key, str, file)
    if not hook:
        raise SaeError(
            f"{file} has no {key}, it has {', '.join(config) or 'nothing'}; expected the hook inside a layer, such as "
            "hook_resid_mid or hook_mlp_out. Add it"
        )
    return hook


def _check_activation(config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> None:
    kind, activation = config.get("model_kind", "transcoder_set"), config.get("activation")
    if kind != "transcoder_set":
        raise SaeError(
            f"model_kind in {file} is {kind!r}; expected transcoder_set for files named layer_<n>.safetensors"
        )
    if activation not in (None, "relu", "jump_relu"):
        raise SaeError(
            f"activation in {file} is {activation!r}; supported: relu, jump_relu (a topk of this kind keeps negative "
            "latents where fewer than k are positive)"
        )
    if activation is not None and (activation == "jump_relu") != (THRESHOLD in tensors):
        raise SaeError(
            f"activation in {file} is {activation!r}, but the weights have {'a' if THRESHOLD in tensors else 'no'} "
            f"{THRESHOLD}; they belong to two sets"
        )


def _read(file: Path) -> dict[str, Tensor]:
    tensors = read_safetensors(file)
    c, d = read_sizes(tensors, per_latent="b_enc", per_width="b_dec", path=file)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (c, d), "W_dec": (c, d), "b_enc": (c,), "b_dec": (d,)}
    shapes |= {key: shape for key, shape in {THRESHOLD: (c,), SKIP: (d, d)}.items() if key in tensors}
    check_keys(tensors, shapes, path=file, family="circuit-tracer")
    check_tensors(tensors, shapes, path=file)
    if THRESHOLD in tensors:
        check_not_negative(tensors[THRESHOLD], path=file)
    return tensors
