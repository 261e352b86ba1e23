"""Llama Scope (OpenMOSS): `hyperparams.json` beside `checkpoints/final.safetensors`, JumpReLU with one threshold.

    s, t             √D / dataset_average_activation_norm.in and .out: the factors on what training read and wrote
    W[c]             the latent's column of decoder.weight, times s / t
    u                ‖W[c]‖ · (z encoder.weightᵀ + encoder.bias / s)
    latents          u where u > jump_relu_threshold
    reconstruction   latents (W[c] / ‖W[c]‖) + decoder.bias / t

An SAE reads and writes one site, and s = t. A transcoder (`LXTC`) reads `hook_point_in` and writes `hook_point_out`.
encoder.weight is [C, D] and decoder.weight is [D, C]: a fact of the format. Weights are stored as trained, in units of
s z; the threshold is not. Its unit, which no file states, was decided from three findings:

1. OpenMOSS' own loading first takes s out of the biases, then brings decoder rows to norm 1, and only then compares the
   result with the threshold (state "inference" of its initializer). This is the formula above.
2. Published thresholds follow the norms of the layers: 0.13 to 2.3 at norms 2.9 to 74. Times s, those looked at lie
   between 1.6 and 3.0 at every layer and site, as 50 active latents of inputs of one norm should have them.
3. SAELens multiplies the threshold by s, and leaves u in units of s z: the same active latents where rows have norm 1.

The stored `top_k` is the L0 that the threshold was set to reproduce. It is taken for the published L0, so that the
check before a run notices another unit. Training put BOS in front of 1,024-token contexts.

Source: lm_saes of OpenMOSS/Language-Model-SAEs, and the published hyperparams. Shapes: D width, C latents.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import (
    read_json,
    read_object,
    read_optional,
    read_positive,
    read_size,
)
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
FILES = (CONFIG, WEIGHTS)
LAYOUT = "Llama Scope folder: hyperparams.json + checkpoints/final.safetensors"
BY_HAND = ()
CONTEXT_SIZE = 1024
# What the formula above assumes, and what every published SAE of the series says.
EXPECTED = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
}


def matches(path: Path) -> bool:
    """Whether `path` is a folder with both files, or one of them."""
    return all((_folder(path) / file).is_file() for file in FILES)


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of a Llama Scope folder. Raises SaeError on any other recipe and on damaged folders."""
    folder = _folder(path)
    config, file = read_json(folder / CONFIG), folder / CONFIG
    _check_recipe(config, file)
    reads, writes = (read_optional(config, f"hook_point_{end}", str, file) for end in ("in", "out"))
    if reads != writes and None in (reads, writes):
        raise SaeError(f"{file} says hook_point_in {reads!r} and hook_point_out {writes!r}; expected both")
    d_in, c = read_size(config, "d_model", file), read_size(config, "d_sae", file)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (c, d_in),
        "decoder.weight": (d_in, c),
        "encoder.bias": (c,),
        "decoder.bias": (d_in,),
    }
    tensors = read_safetensors(folder / WEIGHTS)
    check_keys(tensors, shapes, path=folder / WEIGHTS, family="Llama Scope")
    check_tensors(tensors, shapes, path=folder / WEIGHTS)
    facts = SaeFacts(
        source=source,
        format="llama_scope",
        architecture="jumprelu",
        hook_name=writes,
        reads=None if reads == writes else reads,
        model_name=_model_name(folder),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        published_l0=float(read_size(config, "top_k", file)),
        digest=digest_files([file, folder / WEIGHTS]),
        num_latents=c,
        d_in=d_in,
    )
    norm_in, norm_out = _norms(config, file, one_site=reads == writes)
    # The fold divides the decoder by the factor of the input: what is written has its own.
    ratio = norm_out / norm_in
    stored = StoredSae(
        w_enc_CD=tensors["encoder.weight"],
        w_dec_CD=tensors["decoder.weight"].T.float() * ratio,
        b_enc_C=tensors["encoder.bias"],
        b_dec_D=tensors["decoder.bias"].double() * ratio,
        rule=Threshold(threshold_C=torch.full((c,), read_positive(config, "jump_relu_threshold", file))),
        subtract_b_dec=False,
        rescale_by_decoder_norm=True,
        norm_factor=math.sqrt(d_in) / norm_in,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    if path.name == "final.safetensors":
        return path.parent.parent
    return path.parent if path.name == CONFIG else path


def _check_recipe(config: Mapping[str, Any], file: Path) -> None:
    for key, expected in EXPECTED.items():
        if config.get(key) != expected:
            raise SaeError(
                f"{key} in {file} is {config.get(key)!r}, expected {expected!r}; the unit of jump_relu_threshold is "
                "known for the published recipe alone, and is not guessed for another"
            )


def _norms(config: Mapping[str, Any], file: Path, *, one_site: bool) -> tuple[float, float]:
    norms = read_object(config, "dataset_average_activation_norm", file)
    norm_in, norm_out = read_positive(norms, "in", file), read_positive(norms, "out", file)
    if one_site and norm_in != norm_out:
        raise SaeError(f"dataset_average_activation_norm in {file} is {norms}, expected one number: it is one site")
    return norm_in, norm_out


def _model_name(folder: Path) -> str | None:
    named = any("Llama3_1-8B-Base" in part or "Llama3_1Base" in part for part in folder.absolute().parts)
    return "meta-llama/Llama-3.1-8B" if named else None
