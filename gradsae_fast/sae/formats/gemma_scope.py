"""Gemma Scope (Gemma 2): `layer_L/width_W/average_l0_X/params.npz`, JumpReLU, no b_dec at the input.

The archive holds five arrays and nothing else, so what is known about the SAE is read from its path: layer and L0 from
the folders, the model and the kind of site from the repository's name (`gemma-scope-2b-pt-res`, `-mlp`, `-att`). Where
no repository name is in the path, the site is taken to be the residual stream. An attention SAE is of the heads'
outputs side by side, which the attention's output projection takes in. Training put BOS in front of 1,024-token
contexts. W_enc is [D, C] and W_dec is [C, D].

A transcoder (`-transcoders`) reads what the RMSNorm before the MLP makes before its gain, which training folded into
the MLP, and writes what the norm behind the MLP puts out (model card of google/gemma-scope-2b-pt-transcoders; page 18
of arXiv 2408.05147v2).

Shapes: D width that is read or written, C latents.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.weights import check_keys, check_not_negative, check_tensors, digest_files, read_npz

WEIGHTS = "params.npz"
FILES = (WEIGHTS,)
LAYOUT = "Gemma Scope: params.npz"
BY_HAND = ()
KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
CONTEXT_SIZE = 1024
TRANSCODERS, TRANSCODER_READS = "transcoders", "ln2.hook_normalized"
HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", TRANSCODERS: "hook_mlp_out"}


def matches(path: Path) -> bool:
    """Whether `path` is an npz file, or a folder that holds `params.npz`."""
    return _file(path).is_file() and _file(path).suffix == ".npz"


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of a Gemma Scope archive. Raises SaeError on other archives and embedding SAEs."""
    file = _file(path)
    model_name, kind = _repository(file)
    _check_kind(file, kind)
    tensors = _read(file)
    d_in, num_latents = tensors["W_enc"].shape
    facts = SaeFacts(
        source=source,
        format="gemma_scope",
        architecture="jumprelu",
        hook_name=_hook_name(file, HOOKS[kind or "res"]),
        reads=_hook_name(file, TRANSCODER_READS) if kind == TRANSCODERS else None,
        model_name=model_name,
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        published_l0=_published_l0(file),
        digest=digest_files([file]),
        num_latents=num_latents,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=tensors["W_enc"].T,
        w_dec_CD=tensors["W_dec"],
        b_enc_C=tensors["b_enc"],
        b_dec_D=tensors["b_dec"],
        rule=Threshold(threshold_C=tensors["threshold"]),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _read(file: Path) -> dict[str, Tensor]:
    # Some archives spell the matrices in lower case.
    tensors = {re.sub("^w_", "W_", key): tensor for key, tensor in read_npz(file).items()}
    check_keys(tensors, KEYS, path=file, family="Gemma Scope")
    shape = tuple(tensors["W_enc"].shape)
    if len(shape) != 2:
        raise SaeError(f"W_enc in {file} has shape {shape}, expected two dimensions (width of the site, latents)")
    d_in, c = shape
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, c), "W_dec": (c, d_in), "b_dec": (d_in,)}
    check_tensors(tensors, {key: shapes.get(key, (c,)) for key in KEYS}, path=file)
    check_not_negative(tensors["threshold"], path=file)
    return tensors


def _repository(file: Path) -> tuple[str | None, str | None]:
    """Base model and kind of site, from `gemma-scope-<size>-<pt|it>-<kind>` in the path; None where it is not there."""
    for part in reversed(file.parts):
        if named := re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)$", part):
            size, tuning, kind = named.groups()
            return f"google/gemma-2-{size}" + ("-it" if tuning == "it" else ""), kind
    return None, None


def _check_kind(file: Path, kind: str | None) -> None:
    if "embedding" in file.parts:
        raise SaeError(f"{file} is a Gemma Scope SAE of the embedding, which is not supported; use one of a layer")
    if kind is not None and kind not in HOOKS:
        raise SaeError(f"{file} is of the Gemma Scope kind {kind!r}; supported: {', '.join(HOOKS)}")
    if kind == TRANSCODERS and _number_after(file, "layer_") is None:
        raise SaeError(
            f"{file} is of a transcoder, whose layer is known from its folder layer_L alone; keep that folder"
        )


def _hook_name(file: Path, hook: str) -> str | None:
    layer = _number_after(file, "layer_")
    return None if layer is None else f"blocks.{layer}.{hook}"


def _published_l0(file: Path) -> float | None:
    l0 = _number_after(file, "average_l0_")
    return None if l0 is None else float(l0)


def _number_after(file: Path, prefix: str) -> str | None:
    for part in reversed(file.parts[:-1]):
        if re.fullmatch(rf"{prefix}\d+", part):
            return part.removeprefix(prefix)
    return None
