"""Activations to start from or to move to, all at one site.

    real            the hidden state of another token
    reconstruction  what the SAE decodes for another token: real latents, without the SAE's error
    gaussian        a draw with the mean and the covariance of the real hidden states
    bag             latents without structure (`latent_sets.draw_bag`): the source's synthetic-baseline
    structured      latents with matched angles (`latent_sets.draw_structured`): its synthetic-structured

Letters: N real hidden states, D width, K activations, L latents of one set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import StoreError
from gradsae_fast.sae.canonical import InputStats, Sae
from gradsae_fast.sparse_code import Code, encode, reconstruct
from gradsae_fast.synthetic.latent_sets import Directions, LatentSet, LatentSets, draw_bag, draw_structured

# Of a state's norm, that another must at least be away to lead a path there. Rounding in bfloat16 moves a state by
# 0.01; the nearest states of other tokens were 0.08 away (SmolLM2, layer 9).
_APART = 0.03
_DRAWS = 20  # tried


class Kind(StrEnum):
    """Where an activation comes from."""

    REAL = "real"
    RECONSTRUCTION = "reconstruction"
    GAUSSIAN = "gaussian"
    BAG = "bag"
    STRUCTURED = "structured"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """What activations are drawn from."""

    sae: Sae
    sets: LatentSets
    rows: Directions
    pool_ND: Tensor  # real hidden states of tokens that count, float32


def draw(source: Source, kind: Kind, like_D: Tensor, random: np.random.Generator) -> Tensor:
    """One activation [D], float32. Where an SAE undoes its input's statistics, those of `like_D` are taken."""
    pool_ND = source.pool_ND
    match kind:
        case Kind.REAL | Kind.RECONSTRUCTION:
            real_D = pool_ND[int(random.integers(len(pool_ND)))]
            return real_D if kind is Kind.REAL else reconstruct(source.sae, encode(source.sae, real_D[None]))[0]
        case Kind.GAUSSIAN:
            return _gaussian(pool_ND, random)
        case Kind.BAG | Kind.STRUCTURED:
            draw_set = draw_bag if kind is Kind.BAG else draw_structured
            return compose(source.sae, [draw_set(source.sets, source.rows, random)], like_D)[0]


def draw_apart(source: Source, kind: Kind, like_D: Tensor, from_D: Tensor, random: np.random.Generator) -> Tensor:
    """`draw`, and again while it gives the state `from_D` itself, as where texts begin alike."""
    for _ in range(_DRAWS):
        drawn_D = draw(source, kind, like_D, random)
        if (drawn_D - from_D).norm() >= _APART * from_D.norm():
            return drawn_D
    raise StoreError(
        f"{_DRAWS} draws of kind {kind} all gave the state at a path's other end; expected a store of different texts. "
        "Raise --min-context or --pool-tokens."
    )


def compose(sae: Sae, sets: Sequence[LatentSet], like_D: Tensor) -> Tensor:
    """What the SAE decodes for sets of latents [K, D], float32, with the input statistics of `like_D`."""
    pattern = encode(sae, like_D[None])
    edges = np.cumsum([0, *(len(one.latent_L) for one in sets)])
    orders = [np.argsort(one.latent_L) for one in sets]
    latent_Z = np.concatenate([one.latent_L[order] for one, order in zip(sets, orders, strict=True)])
    value_Z = np.concatenate([one.value_L[order] for one, order in zip(sets, orders, strict=True)])
    device, rows = like_D.device, pattern.rows
    code = Code(
        rows=rows._replace(
            indptr=torch.from_numpy(edges).to(device, rows.indptr.dtype),
            indices=torch.from_numpy(latent_Z).to(device, rows.indices.dtype),
            values=torch.from_numpy(value_Z).to(device, rows.values.dtype),
        ),
        stats=InputStats(
            scale_N=_repeated(pattern.stats.scale_N, len(sets)), shift_N=_repeated(pattern.stats.shift_N, len(sets))
        ),
    )
    return reconstruct(sae, code)


def _gaussian(pool_ND: Tensor, random: np.random.Generator) -> Tensor:
    """mean + a random sum of deviations: its covariance is that of the pool, whatever its rank."""
    mean_D = pool_ND.mean(0)
    weight_N = torch.from_numpy(random.standard_normal(len(pool_ND)).astype(np.float32)).to(pool_ND.device)
    return mean_D + weight_N @ (pool_ND - mean_D) / (len(pool_ND) - 1) ** 0.5


def _repeated(values_1: Tensor | None, times: int) -> Tensor | None:
    return None if values_1 is None else values_1.expand(times)
