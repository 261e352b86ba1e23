"""Gemma Scope 2 (Gemma 3): `<site>/layer_L_width_W_l0_S/params.safetensors`, with or without a `config.json`.

JumpReLU, no b_dec at the input; w_enc is [D, C] and w_dec is [C, D]: a fact of the format. The configuration names the
modules; where it is missing they follow from the folder `<site>` (`resid_post`, `mlp_out`, `attn_out`, `transcoder`,
each also with `_all`), and model and tuning from the repository (`gemma-scope-2-270m-it`). L0 is published as small,
medium or big alone. Training put BOS in front of 1,024-token contexts.

`attn_out` is of the heads' outputs side by side, which the attention's output projection takes in. A transcoder reads
what the norm before the MLP puts out, gain included, and writes what the norm behind the MLP puts out; one with an
affine connection adds z affine_skip_connection, [D, D]. Cross-layer transcoders are `gemma_scope_2_clt`'s.

Shapes: D width that is read or written, C latents.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import read_json, read_optional
from gradsae_fast.sae.weights import check_keys, check_not_negative, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS = "config.json", "params.safetensors"
FILES = (CONFIG, WEIGHTS)
LAYOUT = "Gemma Scope 2 folder: params.safetensors, with or without config.json"
BY_HAND = ()
KEYS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
CONTEXT_SIZE = 1024
SKIP = "affine_skip_connection"
MODULES = {
    "output": "hook_resid_post",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "self_attn.o_proj.input": "attn.hook_z",
}
REFUSED = ("embedding",)
FOLDERS = {"resid_post": "output", "mlp_out": "post_feedforward_layernorm.output", "attn_out": "self_attn.o_proj.input"}
TRANSCODER_READS, TRANSCODER_WRITES = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where an SAE belongs, in the spellings of `SaeFacts`."""

    hook_name: str | None = None
    reads: str | None = None
    affine: bool = False  # whether the files say that there is a skip connection


def matches(path: Path) -> bool:
    """Whether `path` is a folder with Gemma Scope 2 weights, or one of the two files in it."""
    return (_folder(path) / WEIGHTS).is_file()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the folder. Raises SaeError on crosscoders, other modules, and damaged files."""
    folder = _folder(path)
    config_file = folder / CONFIG
    config = read_json(config_file) if config_file.is_file() else {}
    ends = _configured(config, config_file) if config else _named(folder)
    tensors = _read(folder / WEIGHTS, affine=ends.affine)
    d_in, c = tensors["w_enc"].shape
    facts = SaeFacts(
        source=source,
        format="gemma_scope_2",
        architecture="jumprelu",
        hook_name=ends.hook_name,
        reads=ends.reads,
        model_name=model_name(folder),
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
        w_skip_DD=tensors.get(SKIP),
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _read(file: Path, *, affine: bool) -> dict[str, Tensor]:
    tensors = read_safetensors(file)
    expected = (*KEYS, SKIP) if affine else KEYS
    check_keys(tensors, expected, path=file, family="Gemma Scope 2" + " (affine)" * affine)
    shape = tuple(tensors["w_enc"].shape)
    if len(shape) != 2:
        raise SaeError(f"w_enc in {file} has shape {shape}, expected two dimensions (width of the site, latents)")
    d_in, c = shape
    shapes: dict[str, tuple[int, ...]] = {"w_enc": (d_in, c), "w_dec": (c, d_in), "b_dec": (d_in,), SKIP: (d_in, d_in)}
    check_tensors(tensors, {key: shapes.get(key, (c,)) for key in expected}, path=file)
    check_not_negative(tensors["threshold"], path=file)
    return tensors


def _configured(config: Mapping[str, Any], file: Path) -> Ends:
    architecture = config.get("architecture")
    if architecture != "jump_relu":
        raise SaeError(f"architecture in {file} is {architecture!r}; supported: jump_relu")
    reads, writes = (read_optional(config, f"hf_hook_point_{end}", str, file) for end in ("in", "out"))
    affine = read_optional(config, "affine_connection", bool, file) is True
    layer, module = _module(reads)
    if writes in (None, reads) and module in MODULES and not affine:
        return _one_site(layer, module)
    if (module, (layer, TRANSCODER_WRITES)) == (TRANSCODER_READS, _module(writes)):
        return _transcoder(layer, affine=affine)
    raise SaeError(
        f"{file} says hf_hook_point_in {reads!r}, hf_hook_point_out {writes!r}, affine_connection {affine}; supported: "
        f"model.layers.L. before one of {', '.join(MODULES)}, read and written, or from {TRANSCODER_READS} to "
        f"{TRANSCODER_WRITES} of one layer, with or without an affine connection"
    )


def _module(hook_point: str | None) -> tuple[str, str]:
    """Layer and module that a hook point names; empty where it names none."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", hook_point or "")
    return (found[1], found[2]) if found else ("", "")


def _named(folder: Path) -> Ends:
    """What the published folders name; nothing outside of them."""
    layer = re.match(r"layer_(\d+)_width_", folder.absolute().name)
    kind = folder.absolute().parent.name.removesuffix("_all")
    if layer is None:
        return Ends()
    if kind == "transcoder":
        return _transcoder(layer[1], affine=folder.absolute().name.endswith("_affine"))
    if kind in FOLDERS:
        return _one_site(layer[1], FOLDERS[kind])
    if kind in REFUSED or "coder" in kind:
        raise SaeError(
            f"{folder} is of the Gemma Scope 2 kind {kind!r}; supported: {', '.join(FOLDERS)}, transcoder (a "
            "crosscoder reads several layers at once)"
        )
    return Ends()


def _one_site(layer: str, module: str) -> Ends:
    return Ends(hook_name=f"blocks.{layer}.{MODULES[module]}")


def _transcoder(layer: str, *, affine: bool) -> Ends:
    # By the module's path, from the list of layers on: its output has the gain, unlike TransformerLens' hook.
    reads = f"layers.{layer}.{TRANSCODER_READS.removesuffix('.output')}"
    return Ends(hook_name=f"blocks.{layer}.{MODULES[TRANSCODER_WRITES]}", reads=reads, affine=affine)


def model_name(folder: Path) -> str | None:
    """The base model by the repository's name; the pretrained 270m alone bears no suffix."""
    for part in reversed(folder.absolute().parts):
        if named := re.search(r"gemma-scope-2-(\d+[mb])-(pt|it)$", part):
            size, tuning = named.groups()
            return f"google/gemma-3-{size}" + ("" if (size, tuning) == ("270m", "pt") else f"-{tuning}")
    return None
