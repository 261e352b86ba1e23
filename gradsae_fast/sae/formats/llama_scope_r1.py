"""Llama Scope R1-Distill (OpenMOSS): `config.json` beside `sae_weights.safetensors`, JumpReLU with learnt thresholds.

    s                √D / dataset_average_activation_norm, the factor that training put on its input
    h                s z encoder.weightᵀ + encoder.bias
    latents          h where ‖W[c]‖ h > exp(log_jumprelu_threshold), W[c] the latent's column of decoder.weight; no norm
                     where `sparsity_include_decoder_norm` is false
    reconstruction   (latents decoder.weightᵀ + decoder.bias) / s

encoder.weight is [C, D] and decoder.weight is [D, C]: a fact of the format. Unlike Llama Scope's, a threshold is in the
units of h, as its own software compares it. The weight file stores the average norm under the name of the hook. SAELens
leaves the decoder's norm out of the comparison. Training put BOS in front of 1,024-token contexts.

Source: lm_saes of OpenMOSS/Language-Model-SAEs, spring 2025. Shapes: D width of the site, C latents.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import read_json, read_optional, read_size
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS, OTHERS = "config.json", "sae_weights.safetensors", "cfg.json"  # SAELens' configuration is the other
FILES = (CONFIG, WEIGHTS)
LAYOUT = "Llama Scope R1-Distill folder: config.json + sae_weights.safetensors"
BY_HAND = ()
CONTEXT_SIZE = 1024
NORM = "dataset_average_activation_norm."
# What the formula above assumes; what the file leaves out has these values by default.
EXPECTED = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
}


def matches(path: Path) -> bool:
    """Whether `path` is a folder with both files and without SAELens' configuration, or one of them."""
    folder = _folder(path)
    return all((folder / file).is_file() for file in FILES) and not (folder / OTHERS).is_file()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the folder. Raises SaeError on transcoders, other recipes and damaged folders."""
    folder = _folder(path)
    config, file = read_json(folder / CONFIG), folder / CONFIG
    hook_name = _check_recipe(config, file)
    d_in = read_size(config, "d_model", file)
    c = d_in * read_size(config, "expansion_factor", file)
    tensors = read_safetensors(folder / WEIGHTS)
    norm = _take_norm(tensors, folder / WEIGHTS)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (c, d_in),
        "decoder.weight": (d_in, c),
        "encoder.bias": (c,),
        "decoder.bias": (d_in,),
        "log_jumprelu_threshold": (c,),
    }
    check_keys(tensors, shapes, path=folder / WEIGHTS, family="Llama Scope R1-Distill")
    check_tensors(tensors, shapes, path=folder / WEIGHTS)
    facts = SaeFacts(
        source=source,
        format="llama_scope_r1",
        architecture="jumprelu",
        hook_name=hook_name,
        model_name=_model_name(folder),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        digest=digest_files([file, folder / WEIGHTS]),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=tensors["encoder.weight"],
        w_dec_CD=tensors["decoder.weight"].T,
        b_enc_C=tensors["encoder.bias"],
        b_dec_D=tensors["decoder.bias"],
        rule=Threshold(threshold_C=_threshold(tensors, config, file)),
        subtract_b_dec=False,
        norm_factor=math.sqrt(d_in) / norm,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _check_recipe(config: Mapping[str, Any], file: Path) -> str | None:
    reads, writes = (read_optional(config, f"hook_point_{end}", str, file) for end in ("in", "out"))
    if reads != writes:
        raise SaeError(f"{file} reads {reads} and writes {writes}; the published SAEs of this format are of one site")
    for key, expected in EXPECTED.items():
        if config.get(key, expected) != expected:
            raise SaeError(f"{key} in {file} is {config[key]!r}; supported: {expected!r}, as published")
    return reads


def _take_norm(tensors: dict[str, Tensor], file: Path) -> float:
    """Average norm of the hidden states that training read; it leaves the tensors."""
    norms = [tensors.pop(key) for key in sorted(tensors) if key.startswith(NORM)]
    values = {float(norm) for norm in norms if norm.numel() == 1}
    if len(values) != 1 or not 0 < (norm := values.pop()) < math.inf:
        raise SaeError(
            f"{file} stores {len(norms)} tensors named {NORM}<hook>, expected one positive number: without the average "
            "norm of the training's hidden states the weights have no unit. Fetch the file again"
        )
    return norm


def _threshold(tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path) -> Tensor:
    threshold_C = tensors["log_jumprelu_threshold"].double().exp()
    if read_optional(config, "sparsity_include_decoder_norm", bool, file) is False:
        return threshold_C
    # ‖W‖ h > θ is h > θ / ‖W‖; a column of zeros never fires, and writes nothing if it did.
    return threshold_C / torch.linalg.vector_norm(tensors["decoder.weight"], dim=0, dtype=torch.float64)


def _model_name(folder: Path) -> str | None:
    named = any("Llama-Scope-R1-Distill" in part for part in folder.absolute().parts)
    return "deepseek-ai/DeepSeek-R1-Distill-Llama-8B" if named else None
