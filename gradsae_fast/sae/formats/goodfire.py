"""Goodfire: one torch file for a layer of Llama 3.1 8B or 3.3 70B Instruct, a relu SAE of the residual stream.

    latents          relu(z encoder_linear.weightᵀ + encoder_linear.bias)
    reconstruction   latents decoder_linear.weightᵀ + decoder_linear.bias

encoder_linear.weight is [C, D] and decoder_linear.weight is [D, C]: a fact of the format. The file's name gives model
and layer; L0 is the published one.

Source: the model cards of Goodfire/Llama-3.1-8B-Instruct-SAE-l19 and Goodfire/Llama-3.3-70B-Instruct-SAE-l50.
Shapes: D width of the site, C latents.
"""

import re
from pathlib import Path

import torch

from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_pickle, read_sizes

PUBLISHED_L0 = {"Llama-3.1-8B-Instruct-SAE-l19.pth": 91.0, "Llama-3.3-70B-Instruct-SAE-l50.pt": 121.0}
FILES = tuple(PUBLISHED_L0)
LAYOUT = "Goodfire file: Llama-3.1-8B-Instruct-SAE-l19.pth, Llama-3.3-70B-Instruct-SAE-l50.pt"
BY_HAND = ()


def matches(path: Path) -> bool:
    """Whether `path` is a published file, or a folder that holds one."""
    return _find(path) is not None


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the file. Raises SaeError on a damaged file or one of another family."""
    file = _find(path)
    assert file is not None  # `matches` found it
    state = read_pickle(file)
    c, d_in = read_sizes(state, per_latent="encoder_linear.bias", per_width="decoder_linear.bias", path=file)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder_linear.weight": (c, d_in),
        "decoder_linear.weight": (d_in, c),
        "encoder_linear.bias": (c,),
        "decoder_linear.bias": (d_in,),
    }
    check_keys(state, shapes, path=file, family="Goodfire")
    check_tensors(state, shapes, path=file)
    model, layer = re.findall(r"(.+)-SAE-l(\d+)", file.name)[0]
    facts = SaeFacts(
        source=source,
        format="goodfire",
        architecture="relu",
        hook_name=f"blocks.{layer}.hook_resid_post",
        model_name=f"meta-llama/{model}",
        published_l0=PUBLISHED_L0[file.name],
        digest=digest_files([file]),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=state["encoder_linear.weight"],
        w_dec_CD=state["decoder_linear.weight"].T,
        b_enc_C=state["encoder_linear.bias"],
        b_dec_D=state["decoder_linear.bias"],
        rule=Threshold(threshold_C=torch.zeros(c)),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _find(path: Path) -> Path | None:
    found = [path / name for name in FILES if (path / name).is_file()] if path.is_dir() else [path]
    return found[0] if found and found[0].name in FILES and found[0].is_file() else None
