"""Sums over tokens of every (document, latent) pair: what document rankings and contrasts are made of.

Letters: N tokens and M documents of a segment, S chosen documents, P pairs of a chosen document and a latent that is
active on at least one of its counted tokens, C latents, Z non-zeros of a run of tokens.

The store keeps these sums (as float32), with or without masked tokens. They are summed again from the tokens' scores
where the question wants the other choice, or one polarity of latents whose segment has no sums of it, and where it is
about so few of a segment's tokens that reading those is less work than reading the sums of all documents.

The objective `continuation-prob` is kept as the log-gradient and log p, so that long answers do not underflow while
they are computed; its influence is p times the log-gradient's, and that factor is applied here, in float64, once for
each document. Below log p = -745 the factor, and with it the influence, is exactly 0.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gradsae_fast import records
from gradsae_fast.method import score_scale
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.selection import Selection
from gradsae_fast.records import Array, SparseScores
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.format.polarity import turned
from gradsae_fast.store.segment import StoredSegment

RUN_TOKENS = 1 << 14
FEW_TOKENS = 1 / 8  # share of a segment's tokens
_AMOUNTS = {  # of a Tally, by name: its field, and the stored sum it is read from
    "frequency": ("num_active_P", "count"),
    "influence": ("influence_P", "sum_influence"),
    "positive": ("positive_P", "sum_positive"),
    "absolute": ("absolute_P", "sum_absolute"),
    "activation": ("activation_P", "sum_activation"),
    "max_influence": ("max_influence_P", "max_influence"),
    "max_activation": ("max_activation_P", "max_activation"),
}
_UNSCALED = ("frequency", "activation", "max_activation")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """Sums of P (document, latent) pairs of one segment, over counted tokens; influences carry the objective's unit.

    Pairs come by document, and of one document by latent, both ascending, however they were summed: samples rely on it.
    Of a tally by one amount all others are None.
    """

    num_tokens_S: Array  # int64, counted tokens of each chosen document
    row_P: Array  # int64, into the chosen documents
    latent_P: Array  # int64
    num_active_P: Array | None = None  # int64, tokens on which the latent is active
    activation_P: Array | None = None  # float64 from here on: sum of a
    influence_P: Array | None = None  # sum of g
    positive_P: Array | None = None  # sum of max(g, 0)
    absolute_P: Array | None = None  # sum of |g|
    max_activation_P: Array | None = None  # of the negative polarity the most negative a
    max_influence_P: Array | None = None

    def amount_P(self, by: str) -> Array:
        """Return the summed amount that a question ranks by; for `frequency` the number of active tokens.

        `max_influence` and `max_activation` are had by these names too.
        """
        amount_P: Array | None = getattr(self, _AMOUNTS[by][0])
        if amount_P is None:
            raise ValueError(f"got by = {by!r}; this tally is by another amount: tally with by={by!r}, or all of them")
        return amount_P


def tally(
    store: ScoreStore, segment: StoredSegment, slots_S: Array, question: Question, *, by: str | None = None
) -> Tally:
    """Sum the scores of the chosen documents of a segment; exact effects take the place of sums where asked for.

    Args:
        store, segment: where the documents are.
        slots_S: their positions in the segment, ascending.
        question: which scores, of which tokens.
        by: the one amount that is needed, as `Tally.amount_P` names it: nothing else is read; None: all.
    """
    if len(slots_S) <= FEW_TOKENS * segment.num_documents:
        segment.expect_tokens(question.site)
    num_tokens_S = document_lengths(store, segment, question)[slots_S]
    scale_S = document_scale(segment, question)[slots_S]
    few = num_tokens_S.sum() <= FEW_TOKENS * segment.num_tokens
    special = question.include_special != store.aggregates_include_special
    unknown = not segment.site(question.site).has_sums(question.polarity)
    wanted = tuple(_AMOUNTS) if by is None else (by,)
    part = (_summed if few or special or unknown else _stored)(
        segment, slots_S, question, num_tokens_S, scale_S, wanted
    )
    if question.exact is None or part.influence_P is None:
        return part
    influence_P = question.exact.replace(part.influence_P, part.latent_P, slots_S[part.row_P], segment)
    return dataclasses.replace(part, influence_P=influence_P)


def document_lengths(store: ScoreStore, segment: StoredSegment, question: Question) -> Array:
    """Return the counted tokens of every document of a segment, int64 [M]."""
    if question.include_special == store.aggregates_include_special:
        return segment.counted_tokens().astype(np.int64)
    document_N, counted_N = counted_tokens(segment, question)
    return np.bincount(document_N[counted_N], minlength=segment.num_documents)


def scope(store: ScoreStore, selection: Selection, question: Question) -> dict[str, int]:
    """Return how many of the chosen documents have a counted token (num_documents), and those tokens (num_tokens)."""
    is_default = question.include_special == store.aggregates_include_special
    if store.index is not None and is_default and selection.is_all:
        return dict(store.index.facts["counted"])
    lengths = [document_lengths(store, segment, question)[slots_S] for segment, slots_S in selection]
    return {
        "num_documents": sum(int(np.count_nonzero(num_tokens_S)) for num_tokens_S in lengths),
        "num_tokens": sum(int(num_tokens_S.sum()) for num_tokens_S in lengths),
    }


def counted_tokens(segment: StoredSegment, question: Question) -> tuple[Array, Array]:
    """Return the document slot of every token of a segment, int64 [N], and whether the token is counted, bool [N]."""
    document_N = segment.token_column("document").astype(np.int64)
    return document_N, records.counted_tokens(segment.token_column("mask"), question.include_special)


def document_scale(segment: StoredSegment, question: Question) -> Array:
    """Return the factor of each document's stored influences, float64 [M]: p for `continuation-prob`, else 1.

    p is that of the run in which the gradient was taken: of the site's own where sites were spliced one by one.
    """
    return score_scale(question.objective, segment.values_of(question.objective, question.site))


def _stored(
    segment: StoredSegment,
    slots_S: Array,
    question: Question,
    num_tokens_S: Array,
    scale_S: Array,
    wanted: tuple[str, ...],
) -> Tally:
    """Take the chosen documents' rows of the stored sums."""
    names = {amount: stored_name(amount, question.objective) for amount in wanted}
    sums = segment.site(question.site).document_sums([*names.values()], polarity=question.polarity, documents=slots_S)
    row_P = np.repeat(np.arange(len(slots_S)), np.diff(sums.indptr))
    is_scaled = bool(np.any(scale_S != 1))
    amounts = {}
    for amount, name in names.items():
        amount_P = sums.columns[name]
        as_stored = amount in _UNSCALED or not is_scaled
        amounts[_AMOUNTS[amount][0]] = amount_P if as_stored else amount_P * scale_S[row_P]
    if "num_active_P" in amounts:
        amounts["num_active_P"] = amounts["num_active_P"].astype(np.int64)
    return Tally(
        num_tokens_S=num_tokens_S,
        row_P=row_P,
        latent_P=sums.indices.astype(np.int64),
        **amounts,
    )


def stored_name(amount: str, objective: str) -> str:
    name = _AMOUNTS[amount][1]
    return name if amount in _UNSCALED else f"{name}/{objective}"


def _summed(
    segment: StoredSegment,
    slots_S: Array,
    question: Question,
    num_tokens_S: Array,
    scale_S: Array,
    wanted: tuple[str, ...],
) -> Tally:
    """Add up the scores of the chosen documents' tokens."""
    document_N, counted_N = counted_tokens(segment, question)
    edges = np.searchsorted(document_N, np.arange(segment.num_documents + 1))
    parts = []
    for first, last in _runs(slots_S, edges):
        start, stop = int(edges[slots_S[first]]), int(edges[slots_S[last - 1] + 1])
        scores = segment.site(question.site).by_token(start, stop)
        row_N = first + document_N[start:stop] - slots_S[first]
        parts.append(_sum_run(scores, row_N, counted_N[start:stop], scale_S, question, wanted))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Tally(num_tokens_S=num_tokens_S, **columns)


def _runs(slots_S: Array, edges: Array) -> Iterator[tuple[int, int]]:
    """Cut the chosen documents into runs of neighbours that together have few tokens (or one document)."""
    first = 0
    for last in range(1, len(slots_S) + 1):
        ends = last == len(slots_S) or slots_S[last] != slots_S[last - 1] + 1
        if ends or edges[slots_S[last] + 1] - edges[slots_S[first]] > RUN_TOKENS:
            yield first, last
            first = last


def _sum_run(
    scores: SparseScores, row_N: Array, counted_N: Array, scale_S: Array, question: Question, wanted: tuple[str, ...]
) -> dict[str, Array]:
    token_Z = np.repeat(np.arange(len(row_N)), np.diff(scores.indptr))
    keep_Z = counted_N[token_Z] & question.takes(scores.activation)
    row_Z = row_N[token_Z[keep_Z]]
    activation_Z = scores.activation[keep_Z].astype(np.float64)
    influence_Z = influence(scores.activation, scores.projections[question.objective])[keep_Z] * scale_S[row_Z]
    pair_P, pair_Z = np.unique(row_Z * question.num_latents + scores.indices[keep_Z], return_inverse=True)

    def total(value_Z: Array) -> Array:
        return np.bincount(pair_Z, value_Z, len(pair_P))

    amounts: dict[str, Callable[[], Array]] = {
        "frequency": lambda: np.bincount(pair_Z, minlength=len(pair_P)),
        "influence": lambda: total(influence_Z),
        "positive": lambda: total(np.maximum(influence_Z, 0)),
        "absolute": lambda: total(np.abs(influence_Z)),
        "activation": lambda: total(activation_Z),
        "max_influence": lambda: group_maximum(pair_Z, influence_Z, len(pair_P)),
        "max_activation": lambda: strongest(pair_Z, activation_Z, len(pair_P), question),
    }
    return {
        "row_P": pair_P // question.num_latents,
        "latent_P": pair_P % question.num_latents,
        **{_AMOUNTS[amount][0]: amounts[amount]() for amount in wanted},
    }


def influence(activation_Z: Array, projection_Z: Array) -> Array:
    """Return g = a * ⟨gradient, effective decoder row⟩, multiplied in float32 as everywhere, as float64 [Z]."""
    return (activation_Z * projection_Z).astype(np.float64)


def strongest(group: Array, activation: Array, num_groups: int, question: Question) -> Array:
    """Return the largest activation of each group, of the negative polarity the most negative; ±inf without one."""
    turned_up = turned(activation, question.polarity)
    return turned(group_maximum(group, turned_up, num_groups), question.polarity)


def group_maximum(group: Array, values: Array, num_groups: int) -> Array:
    """Return the largest value of each group; NaN where it has one, -inf where it has none."""
    largest = np.full(num_groups, -np.inf)
    with np.errstate(invalid="ignore"):  # numpy warns of the NaN that it passes on as it should
        np.maximum.at(largest, group, values)
    return largest
