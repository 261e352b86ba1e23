"""EleutherAI sparsify: `<hook point>/cfg.json` beside `sae.safetensors`, a top-k SAE or transcoder.

    latents          top_k(relu((z - b_dec) encoder.weightᵀ + encoder.bias)), without b_dec in a transcoder
    reconstruction   latents W_dec + b_dec, plus z W_skipᵀ where there is a skip connection

encoder.weight and W_dec are both [C, D]: a fact of the format. Relu comes before the top-k, so a token with fewer than
k positive latents has fewer than k active ones. With `activation: groupmax`, latents are cut into k runs of neighbours
and the largest of each run is kept. `num_latents: 0` stands for d_in · expansion_factor, and `normalize_decoder`
concerns training alone.

The folder bears the name of its module inside the transformer's body, such as `layers.18` or `layers.18.mlp`. An SAE
reads and writes the module's output; a transcoder (`transcode`) reads the module's input, and z is that. Transcoders
that were trained before February 2025 did subtract b_dec; no file says so.

Source: sparsify/sparse_coder.py, fused_encoder.py and trainer.py of eai-sparsify 1.3. Shapes: D width, C latents.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import GroupMax, Sae, SaeFacts, TopK
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import check_k, read_json, read_optional, read_size
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
    """The canonical SAE of a sparsify folder. Raises SaeError on signed ones, transcoders of no module, and damage."""
    folder = _folder(path)
    config, file = read_json(folder / CONFIG), folder / CONFIG
    _check_not_signed(config, file)
    transcodes = bool(read_optional(config, "transcode", bool, file))
    d_in = read_size(config, "d_in", file)
    num_latents = _num_latents(config, d_in, file)
    rule = _rule(config, num_latents, file)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (num_latents, d_in),
        "encoder.bias": (num_latents,),
        "W_dec": (num_latents, d_in),
        "b_dec": (d_in,),
        **({"W_skip": (d_in, d_in)} if read_optional(config, "skip_connection", bool, file) else {}),
    }
    tensors = read_safetensors(folder / WEIGHTS)
    check_keys(tensors, shapes, path=folder / WEIGHTS, family="sparsify")
    check_tensors(tensors, shapes, path=folder / WEIGHTS)
    site, hook_name = _site(folder.absolute().name)
    if transcodes and site is None and hook_name is None:
        raise SaeError(
            f"{file} is of a transcoder, which reads its module's input, but the name of its folder, "
            f"{folder.absolute().name!r}, is no module's; expected one such as layers.3.mlp, as sparsify names it. "
            "Rename the folder"
        )
    facts = SaeFacts(
        source=source,
        format="sparsify",
        architecture="topk" if isinstance(rule, TopK) else "groupmax",
        site=site,
        hook_name=hook_name,
        reads=_input(site, hook_name) if transcodes else None,
        digest=digest_files([file, folder / WEIGHTS]),
        num_latents=num_latents,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=tensors["encoder.weight"],
        w_dec_CD=tensors["W_dec"],
        b_enc_C=tensors["encoder.bias"],
        b_dec_D=tensors["b_dec"],
        rule=rule,
        subtract_b_dec=not transcodes,
        w_skip_DD=tensors["W_skip"].T if "W_skip" in tensors else None,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _check_not_signed(config: Mapping[str, Any], file: Path) -> None:
    if read_optional(config, "signed", bool, file):
        raise SaeError(
            f"{file} is of an early release and signed: it keeps negative latents among the k; supported: relu"
        )


def _rule(config: Mapping[str, Any], num_latents: int, file: Path) -> TopK | GroupMax:
    activation, k = config.get("activation", "topk"), check_k(config.get("k", DEFAULT_K), num_latents, file)
    if activation == "topk":
        return TopK(k=k)
    if activation != "groupmax":
        raise SaeError(f"activation in {file} is {activation!r}; supported: topk, groupmax")
    if num_latents % k:
        raise SaeError(f"k in {file} is {k}, the number of groups; expected a divisor of the {num_latents} latents")
    return GroupMax(groups=k)


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


def _input(site: str | None, hook_name: str | None) -> str:
    """What the module that is written takes in, in the spelling that its output has."""
    return f"{site}.input" if site else str(hook_name).replace("resid_post", "resid_pre")
