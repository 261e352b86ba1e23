"""The documents in which one latent matters most.

The index keeps, for every latent and segment, how far the sums of a document reach. Segments are visited in that order
until no other can hold one of the first k documents; without such bounds all are.
"""

from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa

from gradsae_fast.ranking.answer import build_table, first_k
from gradsae_fast.ranking.columns import json_column, text_column
from gradsae_fast.ranking.index.bounds import read_document_bounds
from gradsae_fast.ranking.postings import Postings, read_postings
from gradsae_fast.ranking.question import Question, check_latent, resolve
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.ranking.tally import document_lengths, group_maximum, scope, strongest
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

METADATA_PREFIX = "metadata."


def rank_documents(
    store: ScoreStore,
    *,
    latent: SupportsIndex,
    by: str = "influence",
    k: int | None = 20,
    per_token: bool = False,
    where: str | None = None,
    site: str | None = None,
    objective: str | None = None,
    smallest: bool = False,
    include_special: bool | None = None,
    exact_dense: bool = False,
    polarity: str | None = None,
) -> pa.Table:
    """Rank the documents in which a latent fires.

    `by` decides the column `score`, a sum over the counted tokens of the document: influence (sum of g), positive (of
    max(g, 0)), absolute (of |g|), activation (of a); or frequency (active tokens / counted tokens). Ties keep corpus
    order.

    Args:
        latent: the latent's number.
        store, by, k, site, objective, include_special, exact_dense, polarity: see `question.resolve`.
        per_token: rank by the mean over the document's counted tokens, so that long documents do not lead by length.
        where: a condition on document metadata.
        smallest: ascending order instead: by influence, the most negative first.

    Returns:
        rank, key, score, mean_score (per counted token; a frequency is one already), influence, positive, absolute,
        activation, num_active (tokens), frequency, max_influence, max_activation (of the negative polarity the most
        negative), num_tokens (counted), exact where it was asked for, then the metadata columns (with "metadata." in
        front where a column above has the name). No rows where it never fires.

    Raises QueryError where the latent or a name is unknown, k is below 1, or the store has no exact effects.
    """
    asked: dict[str, Any] = {"by": by, "k": k, "site": site, "objective": objective, "include_special": include_special}
    question = resolve(store, **asked, exact_dense=exact_dense, polarity=polarity)
    number = check_latent(latent, question)
    selection = select(store, where=where)
    bounds = None if per_token else _bounds(store, selection, number, question, smallest=smallest)
    columns = _best_documents(store, selection, number, question, bounds, per_token=per_token, smallest=smallest)
    return build_table(
        _described(selection, columns),
        ranking="documents",
        store=store,
        question=question,
        latent=number,
        where=where,
        per_token=per_token,
        smallest=smallest,
        **scope(store, selection, question),
    )


def _bounds(
    store: ScoreStore, selection: Selection, latent: int, question: Question, *, smallest: bool
) -> Array | None:
    """Return an upper bound of the order of each part's documents, as the index has it; None where it has none."""
    special = question.include_special != store.aggregates_include_special
    if store.index is None or special or question.polarity is not None or question.exact is not None:
        return None
    bound_S = read_document_bounds(
        store.index, question.site, question.objective, latent, question.by, smallest=smallest
    )
    numbers = [segment.index for segment in store.segments]
    at = np.searchsorted(numbers, [segment.index for segment, _ in selection.parts])
    return None if bound_S is None else bound_S[at]


def _best_documents(
    store: ScoreStore,
    selection: Selection,
    latent: int,
    question: Question,
    bounds: Array | None,
    *,
    per_token: bool,
    smallest: bool,
) -> dict[str, Array]:
    """Return the columns of the first k documents, visiting segments by falling bound; without bounds all of them."""
    order = range(len(selection.parts)) if bounds is None else np.argsort(-bounds, kind="stable").tolist()
    sums: dict[int, dict[str, Array]] = {}
    best: dict[str, Array] = {}
    for part in order:
        if bounds is not None and sums and _is_beaten(bounds[part], best["score"], question.k, smallest=smallest):
            break
        segment, slots = selection.parts[part]
        sums[part] = _document_sums(store, segment, latent, slots, question)
        if bounds is not None:
            best = _in_order(sums, by=question.by, k=question.k, per_token=per_token, smallest=smallest)
    return best or _in_order(sums, by=question.by, k=question.k, per_token=per_token, smallest=smallest)


def _is_beaten(bound: float, score: Array, k: int | None, *, smallest: bool) -> bool:
    """Whether no document of a segment can be among the first k; a tie may come earlier in the corpus."""
    if bound == -np.inf:
        return True
    return k is not None and len(score) == k and bool((-score[-1] if smallest else score[-1]) > bound)


def _document_sums(
    store: ScoreStore, segment: StoredSegment, latent: int, slots: Array, question: Question
) -> dict[str, Array]:
    """The sums of the documents of a segment in which the latent fires; exact where that is asked and it is dense."""
    postings = read_postings(segment, latent, slots, question)
    sums = _sum_postings(postings, document_lengths(store, segment, question), question)
    if question.exact is None:
        return sums
    latent_P = np.full(len(sums["slot"]), latent)
    influence_P = question.exact.replace(sums["influence"], latent_P, sums["slot"], segment)
    return sums | {"influence": influence_P, "exact": question.exact.is_dense(latent_P)}


def _sum_postings(postings: Postings, num_tokens_M: Array, question: Question) -> dict[str, Array]:
    """Sum one latent's entries over each document of a segment in which it fires."""
    slot, row_P, num_active = np.unique(postings.slot_P, return_inverse=True, return_counts=True)

    def total(value_P: Array) -> Array:
        return np.bincount(row_P, value_P, len(slot))

    num_tokens = num_tokens_M[slot]
    return {
        "slot": slot,
        **{by: total(postings.value_P(by)) for by in ("influence", "positive", "absolute", "activation")},
        "num_active": num_active,
        "frequency": num_active / num_tokens,
        "max_influence": group_maximum(row_P, postings.influence_P, len(slot)),
        "max_activation": strongest(row_P, postings.activation_P, len(slot), question),
        "num_tokens": num_tokens,
    }


def _in_order(
    parts: Mapping[int, dict[str, Array]], *, by: str, k: int | None, per_token: bool, smallest: bool
) -> dict[str, Array]:
    """Join the segments' sums in order of the corpus, add the scores, and keep the first k documents."""
    numbers = sorted(parts)
    sums = {name: np.concatenate([parts[number][name] for number in numbers]) for name in parts[numbers[0]]}
    part = np.repeat(numbers, [len(parts[number]["slot"]) for number in numbers])
    mean_score = sums[by] if by == "frequency" else sums[by] / sums["num_tokens"]
    score = mean_score if per_token else sums[by]
    chosen = first_k(score, np.arange(len(score)), k, smallest=smallest)
    columns = {"part": part, "slot": sums.pop("slot"), "score": score, "mean_score": mean_score, **sums}
    return {name: column[chosen] for name, column in columns.items()}


def _described(selection: Selection, columns: dict[str, Array]) -> dict[str, Any]:
    """Put each document's key and metadata in the place of its segment and slot."""
    places = list(zip(columns["part"].tolist(), columns["slot"].tolist(), strict=True))
    sums = {name: column for name, column in columns.items() if name not in ("part", "slot")}
    segments = {part: selection.parts[part][0] for part, _ in places}
    tables = {part: segment.metadata() for part, segment in segments.items()}
    described: dict[str, Any] = {"key": text_column([segments[part].key_of(slot) for part, slot in places]), **sums}
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        values = [tables[part][name][slot] if name in tables[part] else None for part, slot in places]
        taken = name in described or name == "rank"
        described[METADATA_PREFIX + name if taken else name] = json_column(values)
    return described
