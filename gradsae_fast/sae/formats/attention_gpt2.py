"""Attention SAEs of GPT-2 small (Kissane et al.): `gpt2-small_L<layer>_Hcat_z_....pt`, relu SAEs of the heads.

    latents          relu((z - b_dec) W_enc + b_enc)
    reconstruction   latents W_dec + b_dec

z is the heads' outputs side by side, which the attention's output projection takes in. W_enc is [D, C] and W_dec is
[C, D]: a fact of the format. The file's name gives the layer. Training put BOS in front of 128-token contexts.

Source: ckkissane/attn-saes-gpt2-small-all-layers, as SAELens reads it. Shapes: D width of the site, C latents.
"""

import re
from pathlib import Path

import torch

from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_pickle, read_sizes

FILES = ()  # named after a layer and the training's settings
LAYOUT = "attention SAE of GPT-2 small: gpt2-small_L<layer>_Hcat_z_....pt"
BY_HAND = ()
NAME = re.compile(r"gpt2-small_L(\d+)_Hcat_z_.*\.pt")
CONTEXT_SIZE = 128


def matches(path: Path) -> bool:
    """Whether `path` is a file with a published name."""
    return path.is_file() and NAME.fullmatch(path.name) is not None


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of the file. Raises SaeError on a damaged file or one of another family."""
    state = read_pickle(path)
    c, d_in = read_sizes(state, per_latent="b_enc", per_width="b_dec", path=path)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, c), "W_dec": (c, d_in), "b_enc": (c,), "b_dec": (d_in,)}
    check_keys(state, shapes, path=path, family="GPT-2 attention")
    check_tensors(state, shapes, path=path)
    facts = SaeFacts(
        source=source,
        format="attention_gpt2",
        architecture="relu",
        hook_name=f"blocks.{NAME.findall(path.name)[0]}.attn.hook_z",
        model_name="openai-community/gpt2",
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        digest=digest_files([path]),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=state["W_enc"].T,
        w_dec_CD=state["W_dec"],
        b_enc_C=state["b_enc"],
        b_dec_D=state["b_dec"],
        rule=Threshold(threshold_C=torch.zeros(c)),
        subtract_b_dec=True,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)
