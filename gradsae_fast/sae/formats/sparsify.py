"""EleutherAI sparsify: `<hook point>/cfg.json` beside `sae.safetensors`, a top-k SAE of unit decoder rows.

    latents          top_k(relu((z - b_dec) encoder.weightᵀ + encoder.bias))
    reconstruction   latents W_dec + b_dec

encoder.weight and W_dec are both [C, D]: a fact of the format. Relu comes before the top-k, so a token with fewer than
k positive latents has fewer than k active ones. `num_latents: 0` stands for d_in · expansion_factor, and
`normalize_decoder` concerns training alone. The folder bears the name of its module inside the transformer's body: from
`layers.18` the site is known; of a part, such as `layers.18.mlp`, the module's own path has to be given.

Source: sparsify/sparse_coder.py of eai-sparsify 1.3. Shapes: D width of the site, C latents.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, TopK
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import check_k, read_json, read_optional, read_size, refuse_transcoder
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = (CONFIG, WEIGHTS)
LAYOUT = "EleutherAI sparsify folder: cfg.json + sae.safetensors"
BY_HAND = ()
DEFAULT_EXPANSION, DEFAULT_K = 32, 32


def matches(path: Path) -> bool:
    """Whether `path` is a folder with sparsify weights, or one of the two files in it."""
    return (_folder(path) / WEIGHTS).is_file()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of a sparsify folder. Raises SaeError on transcoders, group-max and damaged folders."""
    folder = _folder(path)
    config, file = read_json(folder / CONFIG), folder / CONFIG
    _check_family(config, file)
    d_in = read_size(config, "d_in", file)
    num_latents = _num_latents(config, d_in, file)
    k = check_k(config.get("k", DEFAULT_K), num_latents, file)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (num_latents, d_in),
        "encoder.bias": (num_latents,),
        "W_dec": (num_latents, d_in),
        "b_dec": (d_in,),
    }
    tensors = read_safetensors(folder / WEIGHTS)
    check_keys(tensors, shapes, path=folder / WEIGHTS, family="sparsify")
    check_tensors(tensors, shapes, path=folder / WEIGHTS)
    site, hook_name = _site(folder.absolute().name)
    facts = SaeFacts(
        source=source,
        format="sparsify",
        architecture="topk",
        site=site,
        hook_name=hook_name,
        digest=digest_files([file, folder / WEIGHTS]),
        num_latents=num_latents,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=tensors["encoder.weight"],
        w_dec_CD=tensors["W_dec"],
        b_enc_C=tensors["encoder.bias"],
        b_dec_D=tensors["b_dec"],
        rule=TopK(k=k),
        subtract_b_dec=True,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _check_family(config: Mapping[str, Any], file: Path) -> None:
    if read_optional(config, "transcode", bool, file):
        refuse_transcoder(file, reads="the module's input", writes="its output")
    if read_optional(config, "skip_connection", bool, file):
        raise SaeError(f"{file} has a skip connection, which adds z W_skip to the reconstruction; supported: none")
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise SaeError(
            f"activation in {file} is {activation!r}; supported: topk (group-max keeps one latent of a group)"
        )
    if read_optional(config, "signed", bool, file):
        raise SaeError(
            f"{file} is of an early release and signed: it keeps negative latents among the k; supported: relu"
        )


def _num_latents(config: Mapping[str, Any], d_in: int, file: Path) -> int:
    if config.get("num_latents"):
        return read_size(config, "num_latents", file)
    return d_in * read_size({"expansion_factor": DEFAULT_EXPANSION, **config}, "expansion_factor", file)


def _site(name: str) -> tuple[str | None, str | None]:
    """Module path and TransformerLens name that a folder's name stands for; the part before `layers` is not in it."""
    if layer := re.fullmatch(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks)\.(\d+)", name):
        return None, f"blocks.{layer[1]}.hook_resid_post"
    part = re.fullmatch(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks)\.\d+\.[\w.]+", name)
    return (name if part else None), None
