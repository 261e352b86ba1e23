"""What sets the groups of an audit apart: one walk over the documents, then means, tests and areas of any latent.

As in `ranking.contrast`, one document is one sample: its influence per counted token. Moments take 24 bytes a latent
and group, the rest of a corpus being one; what samples take is said in `ranking.contrast.evidence`.

Letters: S documents with a counted token, C latents, L shown ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.groups.auroc import auroc
from gradsae_fast.ranking.groups.differences import Differences, Pair, find_differences
from gradsae_fast.ranking.groups.evidence import Evidence, gather
from gradsae_fast.ranking.groups.moments import Moments, effect_size, false_discovery_rate, welch_test
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.records import Array
from gradsae_fast.report.groups import Group, Grouping
from gradsae_fast.store import ScoreStore

CONFIDENCE = 0.95
NUM_FIRST = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrast:
    """Two groups, and the latents with the largest effect sizes between them."""

    name: str
    pair: Pair
    first: Differences


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupMeans:
    """Mean influence per counted token of L latents over a group's documents, and half of its 95 % interval."""

    name: str
    num_documents: int  # those with a counted token
    mean_L: Array  # float64
    half_width_L: Array  # float64 (Student's t); NaN with fewer than two documents


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContrastOfLatents:
    """What a contrast says of L latents, columns as in `contrast`: float64 [L]."""

    name: str
    difference_L: Array
    effect_size_L: Array
    q_L: Array  # corrected for all latents; NaN where groups overlap, as the area
    auroc_L: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrasts:
    """What was found of all groups; nothing where none are asked for."""

    contrasts: tuple[Contrast, ...] = ()
    groups: tuple[tuple[str, Moments], ...] = ()
    evidence: Evidence | None = None

    def first_latents(self) -> list[int]:
        """Return the latents that contrasts begin with, each once."""
        return list(dict.fromkeys(n for contrast in self.contrasts for n in contrast.first.latent.tolist()))

    def means(self, latents: Sequence[int]) -> list[GroupMeans]:
        """Return every group's means of some latents."""
        return [_means(name, moments, np.array(latents, np.int64)) for name, moments in self.groups]

    def of_latents(self, latents: Sequence[int]) -> list[ContrastOfLatents]:
        """Return what every contrast says of some latents."""
        numbers = np.array(latents, np.int64)
        areas = self._areas(numbers)
        return [_of_latents(found, numbers, area_C) for found, area_C in zip(self.contrasts, areas, strict=True)]

    def _areas(self, numbers: Array) -> list[Array]:
        if self.evidence is None:
            return []
        areas = [np.full(self.evidence.question.num_latents, np.nan) for _ in self.contrasts]
        for block, matrix in self.evidence.blocks(np.sort(numbers)):
            for found, area_C in zip(self.contrasts, areas, strict=True):
                if not found.pair.num_both:
                    area_C[block] = auroc(matrix, found.pair.is_a_S, found.pair.is_b_S)
        return areas


def find_contrasts(store: ScoreStore, question: Question, grouping: Grouping) -> Contrasts:
    """Walk over the documents once, and order all latents by the size of every contrast's effect.

    Raises:
        QueryError: a group has no document with a counted token.
    """
    if not grouping.comparisons:
        return Contrasts()
    rests = [comparison.b for comparison in grouping.comparisons if comparison.b not in grouping.groups]
    groups = [*grouping.groups, *rests]
    by_influence = resolve(
        store, by="influence", k=NUM_FIRST, site=question.site, objective=question.objective, include_special=None
    )
    evidence = gather(store, [_slots(group) for group in groups], by_influence)
    for group, moments in zip(groups, evidence.moments, strict=True):
        if not moments.num_documents:
            raise QueryError(f"no document of the group {group.condition} has a counted token; choose another group")
    contrasts = []
    for comparison in grouping.comparisons:
        a, b = groups.index(comparison.a), groups.index(comparison.b)
        pair = Pair(
            a=evidence.moments[a], b=evidence.moments[b], is_a_S=evidence.member_GS[a], is_b_S=evidence.member_GS[b]
        )
        (first,), _ = find_differences(evidence, [pair], order="effect_size", k=NUM_FIRST)
        contrasts.append(Contrast(name=comparison.name, pair=pair, first=first))
    named = [(group.name, moments) for group, moments in zip(grouping.groups, evidence.moments, strict=False)]
    return Contrasts(contrasts=tuple(contrasts), groups=tuple(named), evidence=evidence)


def _slots(group: Group) -> dict[int, Array]:
    return {index: np.flatnonzero(member_M) for index, member_M in group.members.items()}


def _means(name: str, moments: Moments, numbers: Array) -> GroupMeans:
    from scipy.special import stdtrit

    n = moments.num_documents
    half_width_L = np.full(len(numbers), np.nan)
    if n > 1:
        half_width_L = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * np.sqrt(moments.variance[numbers] / n)
    return GroupMeans(name=name, num_documents=n, mean_L=moments.mean[numbers], half_width_L=half_width_L)


def _of_latents(found: Contrast, numbers: Array, area_C: Array) -> ContrastOfLatents:
    pair = found.pair
    _, p_C = welch_test(pair.a, pair.b)
    q_C = np.full_like(p_C, np.nan) if pair.num_both else false_discovery_rate(p_C)
    return ContrastOfLatents(
        name=found.name,
        difference_L=(pair.a.mean - pair.b.mean)[numbers],
        effect_size_L=effect_size(pair.a, pair.b)[numbers],
        q_L=q_C[numbers],
        auroc_L=area_C[numbers],
    )
