"""Gemma Scope 2 (Gemma 3): `<site>/layer_L_width_W_l0_S/params.safetensors`, with or without a `config.json`.

JumpReLU, no b_dec at the input; w_enc is [D, C] and w_dec is [C, D]: a fact of the format. The configuration names the
modules; where it is missing they follow from the folder `<site>` (`resid_post`, `mlp_out`, each also with `_all`), and
model and tuning from the repository (`gemma-scope-2-270m-it`). L0 is published as small, medium or big alone. Training
put BOS in front of 1,024-token contexts.

Shapes: D width of the site, C latents.
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
from gradsae_fast.sae.formats.settings import read_json, read_optional, refuse_transcoder
from gradsae_fast.sae.weights import check_keys, check_not_negative, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS = "config.json", "params.safetensors"
FILES = (CONFIG, WEIGHTS)
LAYOUT = "Gemma Scope 2 folder: params.safetensors, with or without config.json"
BY_HAND = ()
KEYS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
CONTEXT_SIZE = 1024
MODULES = {"output": "hook_resid_post", "post_feedforward_layernorm.output": "hook_mlp_out"}
FOLDERS = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out"}


def matches(path: Path) -> bool:
    """Whether `path` is a folder with Gemma Scope 2 weights, or one of the two files in it."""
    return (_folder(path) / WEIGHTS).is_file()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the folder. Raises SaeError on transcoders, crosscoders and sites that are no output."""
    folder = _folder(path)
    config_file = folder / CONFIG
    config = read_json(config_file) if config_file.is_file() else {}
    hook_name = _configured_hook(config, config_file) if config else _folder_hook(folder)
    tensors = _read(folder / WEIGHTS)
    d_in, c = tensors["w_enc"].shape
    facts = SaeFacts(
        source=source,
        format="gemma_scope_2",
        architecture="jumprelu",
        hook_name=hook_name,
        model_name=_model_name(folder),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        digest=digest_files([folder / WEIGHTS, *([config_file] if config else [])]),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=tensors["w_enc"].T,
        w_dec_CD=tensors["w_dec"],
        b_enc_C=tensors["b_enc"],
        b_dec_D=tensors["b_dec"],
        rule=Threshold(threshold_C=tensors["threshold"]),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _read(file: Path) -> dict[str, Tensor]:
    tensors = read_safetensors(file)
    if "affine_skip_connection" in tensors:
        refuse_transcoder(file, reads="an MLP's input", writes="its output, past an affine skip")
    check_keys(tensors, KEYS, path=file, family="Gemma Scope 2")
    shape = tuple(tensors["w_enc"].shape)
    if len(shape) != 2:
        raise SaeError(f"w_enc in {file} has shape {shape}, expected two dimensions (width of the site, latents)")
    d_in, c = shape
    shapes: dict[str, tuple[int, ...]] = {"w_enc": (d_in, c), "w_dec": (c, d_in), "b_dec": (d_in,)}
    check_tensors(tensors, {key: shapes.get(key, (c,)) for key in KEYS}, path=file)
    check_not_negative(tensors["threshold"], path=file)
    return tensors


def _configured_hook(config: Mapping[str, Any], file: Path) -> str:
    architecture = config.get("architecture")
    if architecture != "jump_relu":
        raise SaeError(f"architecture in {file} is {architecture!r}; supported: jump_relu")
    reads, writes = (read_optional(config, f"hf_hook_point_{end}", str, file) for end in ("in", "out"))
    if writes not in (None, reads) or config.get("affine_connection"):
        refuse_transcoder(file, reads=reads, writes=writes)
    module = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", reads or "")
    if module is None or module[2] not in MODULES:
        raise SaeError(
            f"hf_hook_point_in in {file} is {reads!r}; supported: model.layers.L followed by one of "
            f"{', '.join(MODULES)} (the input of a module, as of o_proj, is no site)"
        )
    return f"blocks.{module[1]}.{MODULES[module[2]]}"


def _folder_hook(folder: Path) -> str | None:
    """The site that the published folders name; None outside of them."""
    layer = re.match(r"layer_(\d+)_width_", folder.absolute().name)
    kind = folder.absolute().parent.name.removesuffix("_all")
    if layer is None:
        return None
    if "transcoder" in kind or "clt" in kind:
        refuse_transcoder(folder, reads="an MLP's input", writes="its output")
    if kind not in FOLDERS:
        raise SaeError(f"{folder} is of the Gemma Scope 2 kind {kind!r}; supported: {', '.join(FOLDERS)}")
    return f"blocks.{layer[1]}.{FOLDERS[kind]}"


def _model_name(folder: Path) -> str | None:
    """The base model by the repository's name; the pretrained 270m alone bears no suffix."""
    for part in reversed(folder.absolute().parts):
        if named := re.search(r"gemma-scope-2-(\d+[mb])-(pt|it)$", part):
            size, tuning = named.groups()
            return f"google/gemma-3-{size}" + ("" if (size, tuning) == ("270m", "pt") else f"-{tuning}")
    return None
