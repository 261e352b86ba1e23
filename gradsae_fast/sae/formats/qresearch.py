"""qresearch: `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, a relu SAE of the residual stream of layer 19.

    latents          relu(z encoder.weightᵀ + encoder.bias)
    reconstruction   latents decoder.weightᵀ + decoder.bias

encoder.weight is [C, D] and decoder.weight is [D, C]: a fact of the format.

Source: qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19. Shapes: D width of the site, C latents.
"""

from pathlib import Path

import torch

from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_pickle, read_sizes

WEIGHTS = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
FILES = (WEIGHTS,)
LAYOUT = f"qresearch file: {WEIGHTS}"
BY_HAND = ()


def matches(path: Path) -> bool:
    """Whether `path` is the published file, or a folder that holds it."""
    return _file(path).is_file() and _file(path).name == WEIGHTS


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the file. Raises SaeError on a damaged file or one of another family."""
    file = _file(path)
    state = read_pickle(file)
    c, d_in = read_sizes(state, per_latent="encoder.bias", per_width="decoder.bias", path=file)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (c, d_in),
        "decoder.weight": (d_in, c),
        "encoder.bias": (c,),
        "decoder.bias": (d_in,),
    }
    check_keys(state, shapes, path=file, family="qresearch")
    check_tensors(state, shapes, path=file)
    facts = SaeFacts(
        source=source,
        format="qresearch",
        architecture="relu",
        hook_name="blocks.19.hook_resid_post",
        model_name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        digest=digest_files([file]),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=state["encoder.weight"],
        w_dec_CD=state["decoder.weight"].T,
        b_enc_C=state["encoder.bias"],
        b_dec_D=state["decoder.bias"],
        rule=Threshold(threshold_C=torch.zeros(c)),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path
