"""The tokens on which one latent matters most, with the text around them.

The store keeps, for every segment and latent, the largest |influence| and activation (block-max), where activations
are negative also for each polarity. Segments are visited in order of that bound, and the visit ends when the k-th best
token found beats every segment that is left: the answer is that of a full scan, and for most latents few segments are
read.
"""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table
from gradsae_fast.ranking.columns import text_column
from gradsae_fast.ranking.context import SegmentText
from gradsae_fast.ranking.postings import read_postings
from gradsae_fast.ranking.question import Question, check_latent, resolve
from gradsae_fast.ranking.selection import Selection, keys_of, select
from gradsae_fast.ranking.tally import document_scale, scope
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

TOKEN_VALUES = ("influence", "positive", "absolute", "activation")

_HIT = np.dtype(
    [("part", "i8"), ("token", "i8"), ("slot", "i8"), ("order", "f8")]
    + [(name, "f8") for name in ("influence", "activation", "projection")]
)


def rank_tokens(
    store: ScoreStore,
    *,
    latent: SupportsIndex,
    by: str = "influence",
    k: int | None = 20,
    context: int = 10,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    site: str | None = None,
    objective: str | None = None,
    smallest: bool = False,
    include_special: bool | None = None,
    polarity: str | None = None,
) -> pa.Table:
    """Rank the tokens on which a latent is active, in the chosen documents.

    `by`: influence (g), positive (max(g, 0)), absolute (|g|) or activation (a). Ties keep corpus order.

    Args:
        latent: the latent's number.
        store, by, k, site, objective, include_special, polarity: what every question has, see `question.resolve`.
        context: tokens of text on each side.
        document, where: a document key or several, and a condition on document metadata.
        smallest: ascending order instead: by influence, the most negative first.

    Returns:
        rank, document (key), position, token (its text; an added token's name), influence, activation, projection
        (influence / activation, but for rounding to float32), before, after (text), num_context (tokens of left
        context that the model saw), mask (TokenMask bits; 0 counts). No rows where the latent is never active.

    Raises QueryError where the latent or a name is unknown, or k is below 1.
    """
    question = resolve(
        store,
        by=by,
        k=k,
        site=site,
        objective=objective,
        include_special=include_special,
        allowed=TOKEN_VALUES,
        polarity=polarity,
    )
    if context < 0:
        raise QueryError(f"got context = {context}; expected 0 or more tokens")
    number = check_latent(latent, question)
    selection = select(store, document=document, where=where)
    best = _best_tokens(store, selection, number, question, smallest=smallest)
    return build_table(
        _columns(store, selection, best, context),
        ranking="tokens",
        store=store,
        question=question,
        latent=number,
        document=keys_of(document),
        where=where,
        smallest=smallest,
        context=context,
        **scope(store, selection, question),
    )


def _best_tokens(store: ScoreStore, selection: Selection, latent: int, question: Question, *, smallest: bool) -> Array:
    """Return the first k hits (`part` counts the selection's segments), visiting segments by falling bound."""
    parts = selection.parts
    bounds = [_bound(store, segment, slots, latent, question, smallest=smallest) for segment, slots in parts]
    best, k = np.zeros(0, _HIT), question.k
    for part in sorted(range(len(parts)), key=lambda part: (-bounds[part], part)):
        # A tie in a segment that is left may come earlier in the corpus: only a strictly better hit ends the visit.
        if bounds[part] == -np.inf or (k is not None and len(best) == k and best["order"][-1] > bounds[part]):
            break
        hits = np.concatenate([best, _hits(part, *parts[part], latent, question, smallest=smallest)])
        best = hits[np.lexsort((hits["token"], hits["part"], -hits["order"]))[:k]]
    return best


def _bound(
    store: ScoreStore, segment: StoredSegment, slots: Array, latent: int, question: Question, *, smallest: bool
) -> float:
    """Return an upper bound of `order` in a segment: -inf where the latent never fires, inf where none is known."""
    if question.include_special and not store.aggregates_include_special:
        return np.inf  # the store's maxima leave out tokens that are asked for
    site, by_activation = segment.site(question.site), question.by == "activation"
    polarity = question.polarity if site.has_sums(question.polarity) else None
    maximum = "max_activation" if by_activation else f"max_absolute/{question.objective}"
    stats = site.latent_stats(["count", maximum], polarity=polarity).columns
    if stats["count"][latent] == 0:
        return -np.inf
    most_negative = by_activation and polarity == "negative"
    if smallest != most_negative and question.by != "influence":
        return np.inf  # the value at one end says nothing about the other end
    sign = -1.0 if most_negative else 1.0
    scale = 1.0 if by_activation else document_scale(segment, question)[slots].max()
    bound = float(sign * stats[maximum][latent] * scale)
    return np.inf if np.isnan(bound) else bound


def _hits(part: int, segment: StoredSegment, slots: Array, latent: int, question: Question, *, smallest: bool) -> Array:
    postings = read_postings(segment, latent, slots, question)
    hits = np.zeros(len(postings.token_P), _HIT)
    value = postings.value_P(question.by)
    columns = {
        "part": part,
        "token": postings.token_P,
        "slot": postings.slot_P,
        "order": -value if smallest else value,
        "influence": postings.influence_P,
        "activation": postings.activation_P,
        "projection": postings.projection_P,
    }
    for name, column in columns.items():
        hits[name] = column
    return hits


def _columns(store: ScoreStore, selection: Selection, best: Array, context: int) -> dict[str, Any]:
    """Look up the keys and texts of the hits, segment by segment."""
    rows: dict[str, list[Any]] = {name: [None] * len(best) for name in ("document", "token", "before", "after")}
    facts = {name: np.zeros(len(best), np.int64) for name in ("position", "context", "mask")}
    vocabulary = store.token_strings()
    for part in np.unique(best["part"]):
        segment = selection.parts[part][0]
        keys, text = segment.document_keys(), SegmentText(segment, vocabulary)
        at = np.flatnonzero(best["part"] == part)
        for name, column in facts.items():
            column[at] = segment.token_column(name)[best["token"][at]]
        for row in at:
            shown = text.around(int(best["slot"][row]), int(best["token"][row]), context)
            rows["document"][row] = keys[best["slot"][row]]
            rows["token"][row], rows["before"][row], rows["after"][row] = shown.token, shown.before, shown.after
    return {
        "document": text_column(rows["document"]),
        "position": facts["position"],
        "token": text_column(rows["token"]),
        "influence": best["influence"],
        "activation": best["activation"],
        "projection": best["projection"],
        "before": text_column(rows["before"]),
        "after": text_column(rows["after"]),
        "num_context": facts["context"],
        "mask": facts["mask"].astype(np.uint8),
    }
