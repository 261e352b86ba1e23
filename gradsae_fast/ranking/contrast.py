"""Latents that tell two groups of documents apart.

One document is one sample: the mean of its score over its counted tokens. Group means, spreads and the tests below
are over documents, so that a long document weighs as much as a short one.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table, first_k
from gradsae_fast.ranking.question import Question, one_of, resolve
from gradsae_fast.ranking.selection import select
from gradsae_fast.ranking.tally import Tally, tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

ORDERS = ("difference", "effect_size", "a", "b")
# The store's sums are float32: a spread below this share of the means is rounding, and a quotient by it would be noise.
_NO_SPREAD = 1e-7


def contrast(
    store: ScoreStore,
    *,
    a: str,
    b: str,
    by: str = "influence",
    k: int | None = 20,
    order: str = "difference",
    site: str | None = None,
    objective: str | None = None,
    include_special: bool | None = None,
    exact_dense: bool = False,
) -> pa.Table:
    """Compare the documents that meet condition `a` with those that meet condition `b`.

    Groups may overlap; the metadata's `num_documents_both` says by how many documents, and the t of overlapping groups
    is no test of independent samples. Documents without a counted token are in no group.

    Args:
        a: a condition on document metadata, like "party=Republican".
        b: the other group's condition.
        by: the document's score: influence, positive, absolute, activation or frequency, each per counted token.
        store, k, site, objective, include_special, exact_dense: what every question has, see `question.resolve`.
        order: difference: largest |difference| first; effect_size: largest |effect size| first;
            a: what group a has more of first (difference descending); b: the reverse.

    Returns:
        rank, latent, difference (mean_a - mean_b), mean_a, mean_b, effect_size (Cohen's d: difference over the pooled
        standard deviation), t (Welch), num_active_documents_a, num_active_documents_b. effect_size and t are NaN where
        a group has one document or no document differs from its group. Many latents are compared at once: read t as an
        order, not as a proof.

    Raises:
        QueryError: a group is empty, a condition cannot be read, a name is unknown, k is below 1, or the store has no
            exact effects.
    """
    question = resolve(
        store, by=by, k=k, site=site, objective=objective, include_special=include_special, exact_dense=exact_dense
    )
    one_of("order", order, ORDERS)
    moments, num_both = _moments(store, {"a": a, "b": b}, question)
    columns = _columns(moments["a"], moments["b"], order=order, k=k)
    if question.exact is not None:
        columns["exact"] = question.exact.is_dense(columns["latent"])
    return build_table(
        columns,
        ranking="contrast",
        store=store,
        question=question,
        per_token=True,
        order=order,
        a=a,
        b=b,
        num_documents_a=moments["a"].num_documents,
        num_documents_b=moments["b"].num_documents,
        num_documents_both=num_both,
        num_tokens_a=moments["a"].num_tokens,
        num_tokens_b=moments["b"].num_tokens,
    )


class Moments:
    """Count, mean and spread of each latent's per-document score, merged segment by segment in float64."""

    def __init__(self, num_latents: int) -> None:
        self.num_documents = 0
        self.num_tokens = 0
        self.num_active = np.zeros(num_latents, np.int64)
        self.mean = np.zeros(num_latents)
        self.squares = np.zeros(num_latents)  # sum of squared distances from the mean

    def add(self, part: Tally, member_S: Array, by: str) -> None:
        """Add the members among a tally's documents (Chan's merge: no cancellation of large sums)."""
        num_new, num_latents = int(np.count_nonzero(member_S)), len(self.mean)
        if num_new == 0:
            return
        keep_P = member_S[part.row_P]
        latent_P = part.latent_P[keep_P]
        sample_P = part.amount_P(by)[keep_P] / part.num_tokens_S[part.row_P[keep_P]]
        active = np.bincount(latent_P, minlength=num_latents)
        mean = np.bincount(latent_P, sample_P, num_latents) / num_new
        spread = np.bincount(latent_P, (sample_P - mean[latent_P]) ** 2, num_latents)
        silent = (num_new - active) * mean**2  # documents in which the latent never fires
        step, total = mean - self.mean, self.num_documents + num_new
        self.squares += spread + silent + step**2 * (self.num_documents * num_new / total)
        self.mean += step * (num_new / total)
        self.num_active += active
        self.num_documents = total
        self.num_tokens += int(part.num_tokens_S[member_S].sum())


def _moments(store: ScoreStore, where: dict[str, str], question: Question) -> tuple[dict[str, Moments], int]:
    """Measure both groups, reading each segment once, and count the documents that are in both."""
    groups = {name: _slots(store, condition) for name, condition in where.items()}
    moments, num_both = {name: Moments(question.num_latents) for name in groups}, 0
    for segment in store.segments:
        slots = {name: group.get(segment.index, np.zeros(0, np.int64)) for name, group in groups.items()}
        union_S = np.unique(np.concatenate(list(slots.values())))
        if len(union_S):
            part = tally(store, segment, union_S, question)
            member = {name: np.isin(union_S, chosen) & (part.num_tokens_S > 0) for name, chosen in slots.items()}
            num_both += int(np.all(list(member.values()), axis=0).sum())
            for name, member_S in member.items():
                moments[name].add(part, member_S, question.by)
    for name, group in moments.items():
        if group.num_documents == 0:
            raise QueryError(
                f"group {name} ({where[name]}) has no document with a counted token; choose another condition"
            )
    return moments, num_both


def _slots(store: ScoreStore, where: str) -> dict[int, Array]:
    return {segment.index: slots for segment, slots in select(store, where=where)}


def _columns(a: Moments, b: Moments, *, order: str, k: int | None) -> dict[str, Any]:
    difference = a.mean - b.mean
    effect_size, t = _effect_size(a, b), _welch_t(a, b)
    keys = {"difference": abs(difference), "effect_size": abs(effect_size), "a": difference, "b": -difference}
    active = np.flatnonzero(a.num_active + b.num_active)
    latent = active[first_k(keys[order][active], active, k)]
    columns = {
        "difference": difference,
        "mean_a": a.mean,
        "mean_b": b.mean,
        "effect_size": effect_size,
        "t": t,
        "num_active_documents_a": a.num_active,
        "num_active_documents_b": b.num_active,
    }
    return {"latent": latent} | {name: column[latent] for name, column in columns.items()}


def _effect_size(a: Moments, b: Moments) -> Array:
    if min(a.num_documents, b.num_documents) < 2:
        return np.full(len(a.mean), np.nan)
    return _quotient(a, b, np.sqrt((a.squares + b.squares) / (a.num_documents + b.num_documents - 2)))


def _welch_t(a: Moments, b: Moments) -> Array:
    if min(a.num_documents, b.num_documents) < 2:
        return np.full(len(a.mean), np.nan)
    variances = [group.squares / (group.num_documents - 1) / group.num_documents for group in (a, b)]
    return _quotient(a, b, np.sqrt(sum(variances)))


def _quotient(a: Moments, b: Moments, spread: Array) -> Array:
    """Divide the difference of means by a spread; NaN where the spread is only rounding."""
    usable = spread > _NO_SPREAD * np.maximum(abs(a.mean), abs(b.mean))
    return np.divide(a.mean - b.mean, spread, out=np.full(len(spread), np.nan), where=usable)
