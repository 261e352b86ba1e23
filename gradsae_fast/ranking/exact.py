"""Exact effects in place of first-order sums, for the latents that are dense.

A store may keep, for each document and each latent that fires nearly everywhere, what removing the latent really does
to the objective. A ranking by influence that asks for it takes these numbers for dense latents and the stored sums for
all others. `positive`, `absolute` and the maxima have no exact counterpart and stay what they are.

Letters: C latents, K dense ones, M documents of a segment, S chosen ones, P pairs of a chosen document and a latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.units import effect_in_unit
from gradsae_fast.records import Array
from gradsae_fast.remedy import commands_of, having
from gradsae_fast.store import ExactDense, ScoreStore
from gradsae_fast.store.segment import StoredSegment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactEffects:
    """The exact effects of one site and objective, in the objective's unit."""

    store: ExactDense
    site: str
    objective: str

    def is_dense(self, latents: Sequence[int] | Array) -> Array:
        """Return which of these latents have exact effects, bool."""
        return np.isin(latents, self.store.latents[self.site])

    def replace(self, influence_P: Array, latent_P: Array, slot_P: Array, segment: StoredSegment) -> Array:
        """Return the influences of (document, latent) pairs of a segment, exact where the latent is dense."""
        dense_P = self.is_dense(latent_P)
        slot, latent = slot_P[dense_P], latent_P[dense_P]
        drop_MK = self.store.drops(segment.index, self.site, self.objective)
        column = np.searchsorted(self.store.latents_of(segment.index, self.site), latent)
        value_M = segment.values_of(self.objective, self.site)
        replaced_P = influence_P.copy()
        replaced_P[dense_P] = effect_in_unit(self.objective, value_M[slot], drop_MK[slot, column])
        return replaced_P


def find_exact(store: ScoreStore, site: str, objective: str, by: str, include_special: bool) -> ExactEffects:
    """Return the exact effects that a question asks for.

    Raises:
        QueryError: the store has none, or not of every segment, or they do not answer the question.

    """
    if by != "influence":
        raise QueryError(
            f"exact effects replace influences only; got by = {by!r}: rank by influence, or without exact effects"
        )
    if include_special != store.aggregates_include_special:
        raise QueryError(
            "exact effects are of the tokens that count in the store's own sums: include_special = "
            f"{store.aggregates_include_special}; got {include_special}: leave it unset, or rank without exact effects"
        )
    found = store.exact_dense()
    if found is None or found.missing:
        state = "none" if found is None else f"none for {len(found.missing)} of its {len(store.segments)} segments"
        raise QueryError(
            f"{store.path} was asked for exact effects of dense latents and has {state}; {_advice(store, found)}"
        )
    return ExactEffects(store=found, site=site, objective=objective)


def _advice(store: ScoreStore, found: ExactDense | None) -> str:
    """What measures the effects that a store lacks; each corpus is measured by the command that scored it."""
    if store.num_revisions or any(generation.is_closed for generation in store.generations):
        return "its segments were revised, and cannot be measured any more: rank without exact effects"
    missing = [segment.index for segment in store.segments] if found is None else found.missing
    share = found.share if found else 0.2
    commands = commands_of(having(store.generations, missing))
    return f"run {commands}, with --exact-dense {share:g}: that measures what is missing"
