"""Gemma Scope 2, cross-layer transcoders: `clt/width_W_l0_S/params_layer_<i>.safetensors`, JumpReLU.

    latents of layer i            h where h = z w_enc + b_enc > threshold
    reconstruction of layer l     Σ over i ≤ l of (latents of layer i) w_dec_i[:, l], plus b_dec_l and, in an affine
                                  one, z_l affine_skip_connection_l

w_enc is [D, C]; w_dec is [C, L, D] with a place for every layer, of which those before i are never used. One layer i is
loaded at a time, as in `circuit_tracer_clt`: its decoder is what it writes to layers i to L - 1, side by side. Bias and
skip of a written layer belong to the sum over all source layers and to none of them, and are left out: what this SAE
decodes is its own share alone, fit for scores with the error term kept.

Every layer reads what the norm before its MLP puts out, gain included, and writes what the norm behind it puts out.

Source: cross_layer_transcoder.py of safety-research/circuit-tracer, and SAELens 6.54. Shapes: D width of a site, C
latents of layer i, L layers of the model.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.gemma_scope_2 import CONTEXT_SIZE, KEYS, SKIP, model_name
from gradsae_fast.sae.weights import (
    check_keys,
    check_not_negative,
    check_tensors,
    digest_files,
    read_safetensors,
    read_sizes,
)

FILES = ()  # named after a layer: see `files_of`
LAYOUT = "Gemma Scope 2 cross-layer transcoder file: params_layer_<i>.safetensors"
BY_HAND = ()
NAME = re.compile(r"params_layer_(\d+)\.safetensors")


def matches(path: Path) -> bool:
    """Whether `path` is the file of one layer."""
    return path.is_file() and NAME.fullmatch(path.name) is not None


def files_of(name: str) -> tuple[str, ...]:
    """What is fetched with the file of one layer: itself; nothing where `name` is no such file."""
    return (name,) if NAME.fullmatch(name) else ()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of one source layer. Raises SaeError on a damaged file or one of another family."""
    layer = int(NAME.findall(path.name)[0])
    tensors = _read(path, layer)
    d, c = tensors["w_enc"].shape
    w_dec_CLD = tensors["w_dec"][:, layer:]
    writes = tuple(f"blocks.{each}.hook_mlp_out" for each in range(layer, tensors["w_dec"].shape[1]))
    facts = SaeFacts(
        source=source,
        format="gemma_scope_2_clt",
        architecture="jumprelu_cross_layer_transcoder",
        hook_name=writes[0],
        reads=f"layers.{layer}.pre_feedforward_layernorm",
        writes=writes,
        model_name=model_name(path.parent),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        digest=digest_files([path]),
        num_latents=c,
        d_in=d,
    )
    stored = StoredSae(
        w_enc_CD=tensors["w_enc"].T,
        w_dec_CD=w_dec_CLD.flatten(1),
        b_enc_C=tensors["b_enc"],
        b_dec_D=torch.zeros(len(writes) * d),
        rule=Threshold(threshold_C=tensors["threshold"]),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _read(file: Path, layer: int) -> dict[str, Tensor]:
    tensors = read_safetensors(file)
    c, d = read_sizes(tensors, per_latent="b_enc", per_width="b_dec", path=file)
    check_keys(tensors, (*KEYS, SKIP) if SKIP in tensors else KEYS, path=file, family="Gemma Scope 2 cross-layer")
    shape = tuple(tensors["w_dec"].shape)
    if len(shape) != 3 or shape[1] <= layer:
        raise SaeError(f"w_dec in {file} has shape {shape}, expected ({c}, all layers of the model, {d})")
    shapes: dict[str, tuple[int, ...]] = {
        "w_enc": (d, c),
        "w_dec": (c, shape[1], d),
        "b_enc": (c,),
        "b_dec": (d,),
        "threshold": (c,),
    }
    check_tensors(tensors, shapes, path=file)
    check_not_negative(tensors["threshold"], path=file)
    return tensors
