"""What sets groups of documents apart, latent by latent, and which latents come first.

Letters: S documents with a counted token, C latents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.ranking.groups.auroc import auroc
from gradsae_fast.ranking.groups.evidence import Evidence
from gradsae_fast.ranking.groups.moments import Moments, effect_size, false_discovery_rate, welch_test
from gradsae_fast.ranking.question import Question
from gradsae_fast.records import Array

ORDERS = ("difference", "effect_size", "a", "b", "p", "q", "auroc")
# Orders by what has no meaning where a document is in both groups.
OF_DISJOINT_GROUPS = ("p", "q", "auroc")
# Orders by what a group of one document does not have.
OF_SPREAD = ("effect_size", "p", "q")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Two groups to compare."""

    a: Moments
    b: Moments
    is_a_S: Array  # bool
    is_b_S: Array

    @property
    def num_both(self) -> int:
        """How many documents are in both groups."""
        return int((self.is_a_S & self.is_b_S).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Differences:
    """The first latents of one pair, in order, and what is said of them (columns as in `contrast.contrast`)."""

    latent: Array
    columns: dict[str, Array]


def find_differences(
    evidence: Evidence, pairs: Sequence[Pair], *, order: str, k: int | None
) -> tuple[list[Differences], int]:
    """Compare pairs of groups over all latents that are active in them; return also how many tests q corrects for.

    Areas under the curve take sorting, and are found for all latents only where the order or the answer needs them.
    """
    columns = [_measure(pair, evidence.question) for pair in pairs]
    q = false_discovery_rate(np.array([found["p"] for found in columns]))
    active = [np.flatnonzero(pair.a.num_active + pair.b.num_active) for pair in pairs]
    for found, q_C in zip(columns, q, strict=True):
        found["q"] = q_C
    if order == "auroc":
        _add_areas(evidence, pairs, columns, active)
    shown = [latents[_first(found, latents, order)[:k]] for found, latents in zip(columns, active, strict=True)]
    if order != "auroc":
        _add_areas(evidence, pairs, columns, shown)
    answers = [
        Differences(latent=latents, columns={name: values_C[latents] for name, values_C in found.items()})
        for found, latents in zip(columns, shown, strict=True)
    ]
    return answers, int(np.count_nonzero(~np.isnan(q)))


def _measure(pair: Pair, question: Question) -> dict[str, Array]:
    t, p = welch_test(pair.a, pair.b)
    exact = {} if question.exact is None else {"exact": question.exact.is_dense(np.arange(question.num_latents))}
    return {
        "difference": pair.a.mean - pair.b.mean,
        "mean_a": pair.a.mean,
        "mean_b": pair.b.mean,
        "effect_size": effect_size(pair.a, pair.b),
        "t": t,
        "num_active_documents_a": pair.a.num_active,
        "num_active_documents_b": pair.b.num_active,
        **exact,
        "p": np.full_like(p, math.nan) if pair.num_both else p,
    }


def _first(columns: dict[str, Array], latents: Array, order: str) -> Array:
    """Order latents: NaN last, ties by the smaller number; p values that are equal (or 0 both) by the larger |t|."""
    keys = {
        "difference": ("difference", lambda value: -abs(value)),
        "effect_size": ("effect_size", lambda value: -abs(value)),
        "a": ("difference", lambda value: -value),
        "b": ("difference", lambda value: value),
        "p": ("p", lambda value: value),
        "q": ("q", lambda value: value),
        "auroc": ("auroc", lambda value: -abs(value - 0.5)),
    }
    name, key = keys[order]
    decided = [latents, -abs(columns["t"][latents]), columns["p"][latents]] if order in ("p", "q") else [latents]
    return np.lexsort([*decided, key(columns[name][latents])])


def _add_areas(
    evidence: Evidence, pairs: Sequence[Pair], columns: Sequence[dict[str, Array]], latents: Sequence[Array]
) -> None:
    """Add the column `auroc` for each pair's latents; NaN elsewhere, and where groups overlap."""
    for pair, found in zip(pairs, columns, strict=True):
        found["auroc"] = np.full(len(pair.a.mean), math.nan)
    wanted = [numbers if not pair.num_both else numbers[:0] for pair, numbers in zip(pairs, latents, strict=True)]
    for block, matrix in evidence.blocks(np.unique(np.concatenate(wanted))):
        for pair, found, numbers in zip(pairs, columns, wanted, strict=True):
            place = np.flatnonzero(np.isin(block, numbers))
            chosen = matrix if len(place) == len(block) else matrix[:, place]
            found["auroc"][block[place]] = auroc(chosen, pair.is_a_S, pair.is_b_S)
