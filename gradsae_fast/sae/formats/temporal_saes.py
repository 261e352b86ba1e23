"""Temporal SAEs as their authors publish them: `conf.yaml` beside `latest_ckpt.safetensors`.

The configuration is that of the training: `llm.dimin` is the width, `dimin · sae.exp_factor` the number of latents, and
the input is multiplied by `sae.scaling_factor`. Of the tensors, D [C, D] decodes, E [D, C] encodes where the weights
are not tied, b is subtracted at the input and added at the end, and the attention (`attn_layers.*`) is named and
computed as in SAELens (`saelens_temporal`). The folder `layer_<n>` on the path names the layer behind which the hidden
states were taken. Training read texts from their BOS on, cut at `data.context_length` tokens.

Source: eslubana/temporalSAEs, the training of canrager/temporalSAEs; SAELens' loader of the latter. Shapes: D width of
the site, C latents.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.saelens_temporal import (
    TemporalOptions,
    read_prediction,
    read_temporal,
    temporal_rule,
    temporal_shapes,
)
from gradsae_fast.sae.formats.settings import read_object, read_optional, read_positive, read_size, read_yaml
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"
FILES = (CONFIG, WEIGHTS)
LAYOUT = "temporalSAEs folder: conf.yaml + latest_ckpt.safetensors"
BY_HAND = ()
NAMES = {"W_dec": "D", "W_enc": "E", "b_dec": "b"}  # SAELens' name -> that of the file
STATED = ("n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "tied_weights")
LAYER = re.compile(r"layer_(\d+)")


def matches(path: Path) -> bool:
    """Whether `path` is a folder with such weights, or one of its two files."""
    return (_folder(path) / WEIGHTS).is_file()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the folder. Raises SaeError on other SAEs of the same training code and damaged folders."""
    folder = _folder(path)
    config, file = read_yaml(folder / CONFIG), folder / CONFIG
    llm, recipe = read_object(config, "llm", file), read_object(config, "sae", file)
    d_in = read_size(llm, "dimin", file)
    d_sae = int(d_in * read_positive(recipe, "exp_factor", file))
    options = _options(recipe, d_sae, file)
    tensors = _read(folder / WEIGHTS, temporal_shapes(options, d_in, d_sae))
    facts = SaeFacts(
        source=source,
        format="temporal_saes",
        architecture="temporal",
        hook_name=_hook_name(folder),
        model_name=read_optional(llm, "model_hf_name", str, file),
        prepend_bos=True,
        context_size=_context_size(config, file),
        digest=digest_files([file, folder / WEIGHTS]),
        num_latents=d_sae,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=tensors["W_dec"] if options.tied else tensors["W_enc"].T,
        w_dec_CD=tensors["W_dec"],
        b_enc_C=None,
        b_dec_D=tensors["b_dec"],
        rule=temporal_rule(options, d_sae),
        subtract_b_dec=False,
        norm_factor=options.factor,
        prediction=read_prediction(options, tensors, subtract_b_dec=True),
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _options(recipe: Mapping[str, Any], d_sae: int, file: Path) -> TemporalOptions:
    """What SAELens makes of the section `sae`. Nothing of it has a default, only `kval_topk` may be empty."""
    kind = recipe.get("sae_type", "temporal")
    if kind != "temporal":
        raise SaeError(f"sae_type in {file} is {kind!r}; supported: temporal")
    missing = [key for key in STATED if recipe.get(key) is None]
    if missing:
        raise SaeError(
            f"the section 'sae' of {file} has no {', '.join(missing)}, it has {', '.join(recipe)}; expected the "
            "configuration of the training. Fetch it again"
        )
    factor = read_positive(recipe, "scaling_factor", file)
    norm = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": factor}
    return read_temporal({**recipe, **norm}, d_sae, file)


def _read(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors under SAELens' names, of which `shapes` are."""
    tensors, expected = read_safetensors(file), {NAMES.get(key, key): shape for key, shape in shapes.items()}
    check_keys(tensors, expected, path=file, family="temporalSAEs")
    check_tensors(tensors, expected, path=file)
    return {key: tensors[NAMES.get(key, key)] for key in shapes}


def _hook_name(folder: Path) -> str | None:
    """The residual stream behind the layer of the innermost folder `layer_<n>`; None where there is no such folder."""
    for part in reversed(folder.absolute().parts):
        if named := LAYER.fullmatch(part):
            return f"blocks.{named[1]}.hook_resid_post"
    return None


def _context_size(config: Mapping[str, Any], file: Path) -> int | None:
    data = read_optional(config, "data", dict, file)
    return None if data is None else read_optional(data, "context_length", int, file)
