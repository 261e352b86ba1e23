"""OpenAI's GPT-2 small autoencoders: `<site>_v5_32k/autoencoders/<layer>.pt`, a top-k SAE of layer-normed input.

    x                (z - mean) / (std + 1e-5), std unbiased; only where the activation is TopK
    latents          top_k((x - pre_bias) encoder.weightᵀ + latent_bias), then relu
    reconstruction   (latents decoder.weightᵀ + pre_bias) · std + mean

encoder.weight is [C, D] and decoder.weight is [D, C]: a fact of the format. The first releases (v1, v4) have a relu and
no norm. The state dict stores the activation's name and k, and three statistics of training that are left aside.

Source: model.py and paths.py of openai/sparse_autoencoder. Shapes: D width of the site, C latents.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import InputNorm, Sae, SaeFacts, Threshold, TopK
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import check_k
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_pickle, read_sizes

FILES = ()  # not on the hub, and named after a layer
LAYOUT = "OpenAI GPT-2 file: <site>_v5_32k/autoencoders/<layer>.pt"
BY_HAND = ()
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
REPEATED = ("activation.k", "activation.postact_fn")  # of the activation's own state, by state_dict()'s recursion
HOOKS = {"resid_post_mlp": "hook_resid_post", "resid_delta_mlp": "hook_mlp_out", "resid_delta_attn": "hook_attn_out"}


def matches(path: Path) -> bool:
    """Whether `path` is a torch file named after a layer's number."""
    return path.is_file() and re.fullmatch(r"\d+\.pt", path.name) is not None


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the file. Raises SaeError on activations it does not know and damaged files."""
    state = read_pickle(path)
    activation, kept = state.pop("activation", "ReLU"), state.pop("activation_state_dict", {})
    for key in STATISTICS + REPEATED:
        state.pop(key, None)
    c, d_in = read_sizes(state, per_latent="latent_bias", per_width="pre_bias", path=path)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (c, d_in),
        "decoder.weight": (d_in, c),
        "pre_bias": (d_in,),
        "latent_bias": (c,),
    }
    check_keys(state, shapes, path=path, family="OpenAI")
    check_tensors(state, shapes, path=path)
    rule = _rule(activation, kept, c, path)
    facts = SaeFacts(
        source=source,
        format="openai",
        architecture=activation,
        hook_name=_hook_name(path),
        model_name="openai-community/gpt2",
        digest=digest_files([path]),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=state["encoder.weight"],
        w_dec_CD=state["decoder.weight"].T,
        b_enc_C=state["latent_bias"],
        b_dec_D=state["pre_bias"],
        rule=rule,
        subtract_b_dec=True,
        input_norm=InputNorm.LAYER_NORM if isinstance(rule, TopK) else InputNorm.NONE,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _rule(activation: Any, kept: Mapping[str, Any], c: int, path: Path) -> Threshold | TopK:
    if activation == "ReLU":
        return Threshold(threshold_C=torch.zeros(c))
    if activation != "TopK":
        raise SaeError(f"activation in {path} is {activation!r}; supported: TopK, ReLU")
    if kept.get("postact_fn") != "ReLU":
        raise SaeError(f"postact_fn in {path} is {kept.get('postact_fn')!r}; supported: ReLU after the top-k")
    return TopK(k=check_k(kept.get("k"), c, path, key="activation_state_dict.k"))


def _hook_name(path: Path) -> str | None:
    """The site that the published folder names; None elsewhere, and between attention and MLP, which is no site."""
    for part in path.parts[:-1]:
        kind = re.sub(r"_v[45](_\d+k)?$", "", part)
        if kind in HOOKS:
            return f"blocks.{int(path.stem)}.{HOOKS[kind]}"
    return None
