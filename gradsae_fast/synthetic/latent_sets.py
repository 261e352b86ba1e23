"""Sets of latents: those that a store holds for its tokens, and sets drawn from their statistics.

A drawn set takes the contributions of a real token, its profile: how many latents, and how long each one's part of the
reconstruction is (activation times the norm of the decoder row). So the number of latents and the distribution of
values are those of real tokens. What is exchanged is which latents carry them:

    bag          any latents, each as often as it fires in the store, none twice: a bag without structure
    structured   the first latent drawn in the same way; every further one, by falling contribution, among those whose
                 decoder rows come nearest to the cosines that the profile's own latent has with those before it

Which statistics are matched is the source's; how the draws are made is ours, as the paper's text was not at hand.

Letters: N tokens, C latents, D width, Z non-zeros, L latents of one set.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

_NEAREST = 8  # latents of about the same angle, among which one is drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentSet:
    """The active latents of one activation."""

    latent_L: Array  # int64
    value_L: Array  # float32, never 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentSets:
    """The stored sets of all tokens that count, in corpus order (CSR)."""

    indptr: Array  # int64 [N+1]
    latent_Z: Array  # int64
    value_Z: Array  # float32
    count_C: Array  # int64, tokens on which each latent fires

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, token: int) -> LatentSet:
        entries = slice(int(self.indptr[token]), int(self.indptr[token + 1]))
        return LatentSet(latent_L=self.latent_Z[entries], value_L=self.value_Z[entries])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Decoder rows as unit vectors, and their norms."""

    unit_CD: Array  # float32
    norm_C: Array  # float64


def read_latent_sets(store: ScoreStore, site: str) -> LatentSets:
    """The sets of every token that counts and has a latent. StoreError where there are fewer than two."""
    parts = [_counted(segment, site) for segment in store.segments]
    counts = np.concatenate([np.zeros(0, np.int64), *(counts for counts, _, _ in parts)])
    latents = np.concatenate([np.zeros(0, np.int64), *(latents for _, latents, _ in parts)])
    values = np.concatenate([np.zeros(0, np.float32), *(values for _, _, values in parts)])
    counts = counts[counts > 0]
    if len(counts) < 2:
        raise StoreError(f"{store.path} holds {len(counts)} tokens with active latents at {site}; expected 2 or more")
    return LatentSets(
        indptr=np.concatenate([[0], np.cumsum(counts)]),
        latent_Z=latents,
        value_Z=values,
        count_C=np.bincount(latents, minlength=store.num_latents(site)),
    )


def directions(w_dec_CD: Array) -> Directions:
    """Unit vectors and norms of decoder rows; a row of zeros stays zero."""
    norm_C = np.linalg.norm(w_dec_CD.astype(np.float64), axis=1)
    unit_CD = w_dec_CD / np.where(norm_C > 0, norm_C, 1)[:, None]
    return Directions(unit_CD=unit_CD.astype(np.float32), norm_C=norm_C)


def draw_bag(sets: LatentSets, rows: Directions, random: np.random.Generator) -> LatentSet:
    """The profile of a random token on latents that have nothing to do with each other."""
    profile = _contributions(sets[int(random.integers(len(sets)))], rows)
    weight_C = np.where(rows.norm_C > 0, sets.count_C, 0)
    size = min(len(profile.value_L), int(np.count_nonzero(weight_C)))
    latent_L = random.choice(len(weight_C), size=size, replace=False, p=weight_C / weight_C.sum())
    return LatentSet(latent_L=latent_L, value_L=_values(profile, latent_L, rows))


def draw_structured(sets: LatentSets, rows: Directions, random: np.random.Generator) -> LatentSet:
    """The profile of a random token on latents whose decoder rows stand to each other as its own do."""
    profile = _contributions(sets[int(random.integers(len(sets)))], rows)
    unit_LD = rows.unit_CD[profile.latent_L]
    wanted_LL = unit_LD @ unit_LD.T
    weight_C = np.where(rows.norm_C > 0, sets.count_C, 0)
    size = min(len(profile.value_L), int(np.count_nonzero(weight_C)))
    chosen = [int(random.choice(len(weight_C), p=weight_C / weight_C.sum()))]
    found_CL = np.zeros((len(weight_C), size), np.float32)  # cosines with those that are chosen
    for place in range(1, size):
        found_CL[:, place - 1] = rows.unit_CD @ rows.unit_CD[chosen[-1]]
        weight_C[chosen[-1]] = 0
        share_L = np.abs(profile.value_L[:place])
        distance_C = np.square(found_CL[:, :place] - wanted_LL[place, :place]) @ share_L
        near = np.argsort(np.where(weight_C > 0, distance_C, np.inf), kind="stable")[:_NEAREST]
        chosen.append(int(random.choice(near[weight_C[near] > 0])))
    latent_L = np.array(chosen, np.int64)
    return LatentSet(latent_L=latent_L, value_L=_values(profile, latent_L, rows))


def pair_cosines(one: LatentSet, rows: Directions) -> Array:
    """Cosines of all pairs of the set's decoder rows."""
    unit_LD = rows.unit_CD[one.latent_L]
    return (unit_LD @ unit_LD.T)[np.triu_indices(len(unit_LD), 1)]


def _contributions(one: LatentSet, rows: Directions) -> LatentSet:
    """The set by falling contribution, with signed contributions in place of values."""
    length_L = one.value_L * rows.norm_C[one.latent_L]
    order = np.argsort(-np.abs(length_L), kind="stable")
    return LatentSet(latent_L=one.latent_L[order], value_L=length_L[order])


def _values(profile: LatentSet, latent_L: Array, rows: Directions) -> Array:
    """Activations that give these latents the profile's contributions."""
    return (profile.value_L[: len(latent_L)] / rows.norm_C[latent_L]).astype(np.float32)


def _counted(segment: Any, site: str) -> tuple[Array, Array, Array]:
    scores = segment.site(site).by_token()
    counts = np.diff(scores.indptr)
    counted = segment.token_column("mask") == 0
    kept = np.repeat(counted, counts)
    return counts[counted], scores.indices[kept].astype(np.int64), scores.activation[kept]
