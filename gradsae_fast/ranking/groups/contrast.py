"""Latents that tell two groups of documents apart.

One document is one sample: the mean of its score over its counted tokens. Group means, spreads and the tests below
are over documents, so that a long document weighs as much as a short one.
"""

import operator

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table
from gradsae_fast.ranking.groups.differences import OF_DISJOINT_GROUPS, OF_SPREAD, ORDERS, Pair, find_differences
from gradsae_fast.ranking.groups.evidence import Evidence, Group, gather
from gradsae_fast.ranking.groups.moments import merged
from gradsae_fast.ranking.groups.relabelling import permutation_test
from gradsae_fast.ranking.question import Question, one_of, resolve
from gradsae_fast.ranking.selection import Selection, select_each
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore


def contrast(
    store: ScoreStore,
    *,
    a: str,
    b: str | None = None,
    by: str = "influence",
    k: int | None = 20,
    order: str = "difference",
    site: str | None = None,
    objective: str | None = None,
    include_special: bool | None = None,
    exact_dense: bool = False,
    permutations: int = 0,
    seed: int = 0,
) -> pa.Table:
    """Compare the documents that meet condition `a` with those that meet condition `b`, or with all others.

    A document in both groups (`num_documents_both` in the metadata) makes their t no test of independent samples, and
    p, q and auroc, which then mean nothing, NaN. Documents without a counted token are in no group.

    Args:
        a: a condition on document metadata, like "party=Republican".
        b: the other group's condition; None: every document that does not meet `a`.
        by: the document's score: influence, positive, absolute, activation or frequency, each per counted token.
        store, k, site, objective, include_special, exact_dense: what every question has, see `question.resolve`.
        order: difference, effect_size: largest size first; a: what group a has more of first; b: the reverse;
            p, q: smallest first; auroc: furthest from 0.5 first.
        permutations, seed: relabellings to draw for a permutation test, 0: no such test; seed of the draw.

    Returns:
        rank, latent, difference (mean_a - mean_b), mean_a, mean_b, effect_size (Cohen's d), t (Welch),
        num_active_documents_a, num_active_documents_b, exact where asked for, p (of t, two-sided), q (p corrected by
        Benjamini and Hochberg for the metadata's `num_compared` latents), auroc (chance that a document of a scores
        above one of b, ties half); with permutations p_permutation (of the difference, two-sided) and p_max (the same,
        corrected for the largest of all latents). effect_size, t, p and q are NaN where a group has one document or
        no document differs from its group.

    Raises:
        QueryError: a group is empty, a condition cannot be read, a name is unknown, a number is out of range, the
            store has no exact effects, or what is asked for makes no sense for groups that overlap or of one document.
    """
    question = resolve(
        store, by=by, k=k, site=site, objective=objective, include_special=include_special, exact_dense=exact_dense
    )
    one_of("order", order, ORDERS)
    if operator.index(permutations) < 0:
        raise QueryError(f"got permutations = {permutations}; expected 0 (no permutation test) or more, like 1000")
    if operator.index(seed) < 0:
        raise QueryError(f"got seed = {seed}; expected 0 or more")
    if seed and not permutations:
        raise QueryError(f"got seed = {seed} without permutations, which alone it has an effect on; ask for both")
    return _answer(store, question, a, b, order=order, permutations=permutations, seed=seed)


def _answer(
    store: ScoreStore, question: Question, a: str, b: str | None, *, order: str, permutations: int, seed: int
) -> pa.Table:
    group_a, *rest = (_members(chosen) for chosen in select_each(store, [a] if b is None else [a, b]))
    group_b = rest[0] if rest else _others(store, group_a)
    where = {"a": a, "b": f"not ({a})" if b is None else b}
    evidence = gather(store, (group_a, group_b), question)
    (moments_a, moments_b), (is_a_S, is_b_S) = evidence.moments, evidence.member_GS
    pair = Pair(a=moments_a, b=moments_b, is_a_S=is_a_S, is_b_S=is_b_S)
    _check(pair, where, order, permutations)
    (found,), num_compared = find_differences(evidence, [pair], order=order, k=question.k)
    tested, facts = _permute(evidence, pair, permutations, seed)
    return build_table(
        {"latent": found.latent, **found.columns, **{name: p_C[found.latent] for name, p_C in tested.items()}},
        ranking="contrast",
        store=store,
        question=question,
        per_token=True,
        order=order,
        **where,
        num_documents_a=pair.a.num_documents,
        num_documents_b=pair.b.num_documents,
        num_documents_both=pair.num_both,
        num_tokens_a=pair.a.num_tokens,
        num_tokens_b=pair.b.num_tokens,
        num_compared=num_compared,
        **facts,
    )


def _members(selection: Selection) -> Group:
    return {segment.index: slots for segment, slots in selection}


def _others(store: ScoreStore, group: Group) -> Group:
    everything = {segment.index: np.arange(segment.num_documents) for segment in store.segments}
    return {index: np.setdiff1d(slots, group.get(index, ())) for index, slots in everything.items()}


def _check(pair: Pair, where: dict[str, str], order: str, permutations: int) -> None:
    for name, group in (("a", pair.a), ("b", pair.b)):
        if group.num_documents == 0:
            raise QueryError(
                f"group {name} ({where[name]}) has no document with a counted token; choose another condition"
            )
        if group.num_documents == 1 and order in OF_SPREAD:
            raise QueryError(
                f"group {name} ({where[name]}) has one document with a counted token, and so no spread, which the "
                f"order {order!r} needs; order by difference or auroc, or choose a wider condition"
            )
    if pair.num_both and (permutations or order in OF_DISJOINT_GROUPS):
        asked = f"the order {order!r}" if order in OF_DISJOINT_GROUPS else "a permutation test"
        raise QueryError(
            f"{pair.num_both} documents are in both groups, for which {asked} makes no sense; "
            f"leave them out of one: b = {'({b}) and not ({a})'.format(**where)!r}"
        )


def _permute(
    evidence: Evidence, pair: Pair, permutations: int, seed: int
) -> tuple[dict[str, Array], dict[str, int | None]]:
    """Return the columns of the permutation test over all latents, and the facts of it; nothing where none is asked."""
    if not permutations:
        return {}, {}
    both = merged((pair.a, pair.b))
    active = np.flatnonzero(both.num_active)
    test = permutation_test(evidence.blocks(active), pair.is_a_S, both.deviation, permutations=permutations, seed=seed)
    facts = {"permutations": test.num_relabellings, "seed": None if test.is_complete else seed}
    return {"p_permutation": test.p, "p_max": test.p_max}, facts
