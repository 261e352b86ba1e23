"""Cross-layer transcoders for circuit-tracer: `W_enc_<i>.safetensors` and `W_dec_<i>.safetensors` beside `config.yaml`.

    latents of layer i            relu(h) where h = z W_encᵀ + b_enc; only above threshold where the file has one
    reconstruction of layer l     Σ over i ≤ l of (latents of layer i) W_dec_i[:, l - i], plus b_dec_l

One layer i is loaded at a time. Its decoder is what it writes to layers i to L - 1, side by side: W_dec_i is [C, L - i,
D] and becomes [C, (L - i) D], and `SaeFacts.writes` names the sites in that order. A layer's bias belongs to the sum
over all source layers and to none of them, so b_dec is zero here: what this SAE decodes is its own share alone, fit for
scores with the error term kept and not for taking the place of a hidden state.

W_enc is [C, D]. `config.yaml` names the base model and the hooks, as in `circuit_tracer`. SAELens reads the same files
as one transcoder, its decoders summed and the threshold left out.

Source: cross_layer_transcoder.py of safety-research/circuit-tracer; mntss/clt-gemma-2-2b-2.5M and its kin. Shapes: D
width of a site, C latents of layer i, L layers of the model.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.circuit_tracer import CONFIG, read_hook
from gradsae_fast.sae.formats.settings import read_optional, read_yaml
from gradsae_fast.sae.weights import (
    check_keys,
    check_not_negative,
    check_tensors,
    digest_files,
    read_safetensors,
    read_sizes,
)

FILES = ()  # named after a layer: see `files_of`
LAYOUT = "cross-layer transcoder file: W_enc_<i>.safetensors beside W_dec_<i>.safetensors and config.yaml"
BY_HAND = ()
NAME = re.compile(r"W_enc_(\d+)\.safetensors")


def matches(path: Path) -> bool:
    """Whether `path` is the encoder's file of one layer."""
    return path.is_file() and NAME.fullmatch(path.name) is not None


def files_of(name: str) -> tuple[str, ...]:
    """What is fetched with the encoder's file of one layer; nothing where `name` is no such file."""
    found = NAME.fullmatch(name)
    return (name, _decoder(found[1]), CONFIG) if found else ()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of one source layer. Raises SaeError without its decoder or configuration, and on damage."""
    config, file = read_yaml(path.parent / CONFIG), path.parent / CONFIG
    layer = int(NAME.findall(path.name)[0])
    encoder = _read_encoder(path, layer)
    c, d = encoder["W_enc"].shape
    decoder_file = path.parent / _decoder(layer)
    w_dec_CLD = _read_decoder(decoder_file, layer, c, d)
    output = read_hook(config, "feature_output_hook", file)
    writes = tuple(f"blocks.{layer + each}.{output}" for each in range(w_dec_CLD.shape[1]))
    facts = SaeFacts(
        source=source,
        format="circuit_tracer_clt",
        architecture=("jumprelu" if "threshold" in encoder else "relu") + "_cross_layer_transcoder",
        hook_name=writes[0],
        reads=f"blocks.{layer}.{read_hook(config, 'feature_input_hook', file)}",
        writes=writes,
        model_name=read_optional(config, "model_name", str, file),
        digest=digest_files([path, decoder_file, file]),
        num_latents=c,
        d_in=d,
    )
    stored = StoredSae(
        w_enc_CD=encoder["W_enc"],
        w_dec_CD=w_dec_CLD.flatten(1),
        b_enc_C=encoder["b_enc"],
        b_dec_D=torch.zeros(w_dec_CLD.shape[1] * d),
        rule=Threshold(threshold_C=encoder.get("threshold", torch.zeros(c))),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _decoder(layer: int | str) -> str:
    return f"W_dec_{layer}.safetensors"


def _read_encoder(file: Path, layer: int) -> dict[str, Tensor]:
    """W_enc, b_enc, b_dec, maybe threshold; their stored names end in the layer's number."""
    stored = read_safetensors(file)
    c, d = read_sizes(stored, per_latent=f"b_enc_{layer}", per_width=f"b_dec_{layer}", path=file)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (c, d), "b_enc": (c,), "b_dec": (d,)}
    if f"threshold_{layer}" in stored:
        shapes["threshold"] = (c,)
    named = {f"{key}_{layer}": shape for key, shape in shapes.items()}
    check_keys(stored, named, path=file, family="cross-layer transcoder")
    check_tensors(stored, named, path=file)
    tensors = {key: stored[f"{key}_{layer}"] for key in shapes}
    if "threshold" in tensors:
        check_not_negative(tensors["threshold"], path=file)
    return tensors


def _read_decoder(file: Path, layer: int, c: int, d: int) -> Tensor:
    """[C, L - i, D]: how many layers follow is known from the file alone."""
    tensors, key = read_safetensors(file), f"W_dec_{layer}"
    check_keys(tensors, [key], path=file, family="cross-layer transcoder")
    shape = tuple(tensors[key].shape)
    if len(shape) != 3 or shape[1] == 0:
        raise SaeError(f"{key} in {file} has shape {shape}, expected ({c}, layers from {layer} on, {d})")
    check_tensors(tensors, {key: (c, shape[1], d)}, path=file)
    return tensors[key]
