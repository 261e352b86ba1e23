"""Qwen Scope: `SAE-Res-<model>-W<n>K-L0_<k>/layer<L>.sae.pt`, a top-k SAE of the residual stream.

    latents          top_k(z W_encᵀ + b_enc), then relu
    reconstruction   latents W_decᵀ + b_dec

W_enc is [C, D] and W_dec is [D, C]: a fact of the format, the reverse of what other formats store under these names.
The file does not hold k: it is in the repository's name, or given by hand. C is n · 1024.

Source: the Qwen Scope collection of the Qwen team. Shapes: D width of the site, C latents.
"""

import re
from pathlib import Path

import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, TopK
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import check_k
from gradsae_fast.sae.weights import check_keys, check_tensors, digest_files, read_pickle, read_sizes

FILES = ()  # named after a layer
LAYOUT = "Qwen Scope file: SAE-Res-<model>-W<n>K-L0_<k>/layer<L>.sae.pt"
BY_HAND = ("k",)
FILE_NAME = re.compile(r"layer(\d+)\.sae\.pt")
REPOSITORY = re.compile(r"SAE-Res-(?P<model>.+)-W(?P<kilo>\d+)K-L0_(?P<k>\d+)$")


def matches(path: Path) -> bool:
    """Whether `path` is a file that is named as the published ones are."""
    return path.is_file() and FILE_NAME.fullmatch(path.name) is not None


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype, k: int | None = None) -> Sae:
    """The canonical SAE of the file. `k` is needed where the repository's name is not in the path. Raises SaeError."""
    state = read_pickle(path)
    c, d_in = read_sizes(state, per_latent="b_enc", per_width="b_dec", path=path)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (c, d_in), "W_dec": (d_in, c), "b_enc": (c,), "b_dec": (d_in,)}
    check_keys(state, shapes, path=path, family="Qwen Scope")
    check_tensors(state, shapes, path=path)
    named = next((found for part in reversed(path.absolute().parts) if (found := REPOSITORY.search(part))), None)
    if named and int(named["kilo"]) * 1024 != c:
        raise SaeError(f"{path} has {c} latents, but its repository is named for {int(named['kilo']) * 1024}")
    layer = FILE_NAME.fullmatch(path.name)
    assert layer is not None  # `matches` asked for it
    facts = SaeFacts(
        source=source,
        format="qwen_scope",
        architecture="topk",
        hook_name=f"blocks.{layer[1]}.hook_resid_post",
        model_name=f"Qwen/{named['model']}" if named else None,
        digest=digest_files([path], extra="" if k is None else f"k={k}"),
        num_latents=c,
        d_in=d_in,
    )
    stored = StoredSae(
        w_enc_CD=state["W_enc"],
        w_dec_CD=state["W_dec"].T,
        b_enc_C=state["b_enc"],
        b_dec_D=state["b_dec"],
        rule=TopK(k=_k(named, k, c, path)),
        subtract_b_dec=False,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _k(named: re.Match[str] | None, by_hand: int | None, c: int, path: Path) -> int:
    in_name = None if named is None else int(named["k"])
    if by_hand is not None and in_name is not None and by_hand != in_name:
        raise SaeError(f"k={by_hand} contradicts the repository's name in {path}, which says {in_name}; leave it out")
    k = in_name if by_hand is None else by_hand
    if k is None:
        raise SaeError(
            f"{path} does not store k, and no folder of its path is named SAE-Res-<model>-W<n>K-L0_<k>; give k, or "
            "keep the repository's name"
        )
    return check_k(k, c, path)
