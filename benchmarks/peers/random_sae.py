"""A JumpReLU SAE of random directions that fits a model's hidden states as well as random directions can.

Decoder rows are random unit vectors, encoder rows the same ones times a factor fitted by least squares; b_dec is the
mean hidden state; thresholds let the wanted number of latents fire per token, each in a wide gap between values that
occur, so that rounding switches no latent. So the reconstruction explains about
half of the variance, and what follows the splice runs on sane numbers. Encoder rows have no part along the direction of
the masked tokens, attention sinks whose norm is a hundred times that of the others: else half of all latents would fire
there, and what is stored of tokens that do not count would outweigh the rest.

Letters: N tokens, S masked ones among them, C latents, D width, K largest values of a latent, G gaps between them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.sae.formats import saelens

NEIGHBOURS = 3  # gaps that a threshold may lie in: with one active token less, as many, or one more
MARGIN = 1.001


def write_random_sae(
    folder: Path,
    hidden_ND: Tensor,
    masked_N: Tensor,
    *,
    num_latents: int,
    active: float,
    metadata: Mapping[str, Any],
) -> Path:
    """Write a SAELens folder for hidden states float32 [N, D] of which `masked_N` (bool) do not count.

    `metadata` says where the SAE belongs, as SAELens does; its L0 is added.
    """
    generator = torch.Generator().manual_seed(0)
    w_dec_CD = torch.randn(num_latents, hidden_ND.shape[1], generator=generator)
    w_dec_CD /= w_dec_CD.norm(dim=1, keepdim=True)
    b_dec_D = hidden_ND[~masked_N].mean(0)
    x_ND = hidden_ND[~masked_N] - b_dec_D
    w_enc_DC = _without(w_dec_CD, hidden_ND[masked_N] - b_dec_D).T.contiguous()
    u_NC = x_ND @ w_enc_DC
    threshold_C = _in_gaps(u_NC, _quantile(u_NC, round(active * len(x_ND))))
    latents_NC = u_NC * (u_NC > threshold_C)
    found_ND = latents_NC @ w_dec_CD
    factor = float((x_ND * found_ND).sum() / found_ND.square().sum())
    weights = {
        "W_enc": factor * w_enc_DC,
        "W_dec": w_dec_CD,
        "b_enc": torch.zeros(num_latents),
        "b_dec": b_dec_D,
        "threshold": factor * threshold_C,
    }
    l0 = float((latents_NC != 0).sum() / len(x_ND))
    config = {"metadata": {**metadata, "l0": l0}}
    return saelens.save(folder, architecture="jumprelu", weights=weights, config=config)


def _without(rows_CD: Tensor, masked_SD: Tensor) -> Tensor:
    """Rows with their part along the mean of the masked tokens taken off."""
    if not len(masked_SD):
        return rows_CD
    direction_D = masked_SD.mean(0)
    direction_D /= direction_D.norm()
    return rows_CD - torch.outer(rows_CD @ direction_D, direction_D)


def _quantile(u_NC: Tensor, count: int) -> float:
    """The number that `count` entries exceed, found by halving: sorting all of them would take minutes."""
    low, high = 0.0, float(u_NC.max())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if int((u_NC > middle).sum()) > count else (low, middle)
    return high


def _in_gaps(u_NC: Tensor, level: float) -> Tensor:
    """Thresholds [C] near a level: of the gaps between neighbouring values around it, the middle of the widest.

    A latent without a value above the level gets the level, or a little more than its largest value.
    """
    count_C = (u_NC > level).sum(0)
    above_C = count_C.clamp(1, len(u_NC) - NEIGHBOURS - 1)
    top_KC = u_NC.topk(int(above_C.max()) + NEIGHBOURS, dim=0).values
    rank_GC = (above_C + torch.arange(NEIGHBOURS)[:, None] - 2).clamp(min=0)
    upper_GC, lower_GC = top_KC.gather(0, rank_GC), top_KC.gather(0, rank_GC + 1)
    widest_1C = (upper_GC - lower_GC).argmax(0, keepdim=True)
    middle_C = ((upper_GC + lower_GC) / 2).gather(0, widest_1C)[0]
    return torch.where(count_C == 0, (MARGIN * top_KC[0]).clamp(min=level), middle_C)
