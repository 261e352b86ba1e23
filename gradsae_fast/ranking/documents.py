"""The documents in which one latent matters most."""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa

from gradsae_fast.ranking.answer import build_table, first_k
from gradsae_fast.ranking.columns import json_column, text_column
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
    question = resolve(
        store,
        by=by,
        k=k,
        site=site,
        objective=objective,
        include_special=include_special,
        exact_dense=exact_dense,
        polarity=polarity,
    )
    number = check_latent(latent, question)
    selection = select(store, where=where)
    sums = [_document_sums(store, segment, number, slots, question) for segment, slots in selection]
    return build_table(
        _described(selection, _in_order(sums, by=by, k=k, per_token=per_token, smallest=smallest)),
        ranking="documents",
        store=store,
        question=question,
        latent=number,
        where=where,
        per_token=per_token,
        smallest=smallest,
        **scope(store, selection, question),
    )


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
    parts: Sequence[dict[str, Array]], *, by: str, k: int | None, per_token: bool, smallest: bool
) -> dict[str, Array]:
    """Join the segments' sums, add the scores, and keep the first k documents; `part` counts the segments."""
    sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    part = np.repeat(np.arange(len(parts)), [len(part["slot"]) for part in parts])
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
    keys = {part: segment.document_keys() for part, segment in segments.items()}
    tables = {part: segment.metadata() for part, segment in segments.items()}
    described: dict[str, Any] = {"key": text_column([keys[part][slot] for part, slot in places]), **sums}
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        values = [tables[part][name][slot] if name in tables[part] else None for part, slot in places]
        taken = name in described or name == "rank"
        described[METADATA_PREFIX + name if taken else name] = json_column(values)
    return described
