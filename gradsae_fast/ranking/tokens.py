"""The tokens on which one latent matters most, with the text around them.

What is asked of the whole store is answered from the leading tokens that its index keeps, where they are certain to
be the answer. Else segments are visited in order of how far the latent's values reach in each (block-max: kept by the
index for all of them side by side, and by every segment for itself), and the visit ends when the k-th best token found
beats every segment that is left: the answer is that of a full scan, and for most latents few segments are read.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table
from gradsae_fast.ranking.columns import text_column
from gradsae_fast.ranking.context import SegmentText
from gradsae_fast.ranking.index.bounds import read_bounds
from gradsae_fast.ranking.index.leaders import are_of, needed_lists, read_leaders
from gradsae_fast.ranking.postings import Postings, read_postings
from gradsae_fast.ranking.question import Question, check_latent, resolve
from gradsae_fast.ranking.selection import Selection, keys_of, select
from gradsae_fast.ranking.tally import document_scale, influence, scope
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

TOKEN_VALUES = ("influence", "positive", "absolute", "activation")

_FACTS = ("position", "context", "mask")  # -1 in a hit: to be looked up
_HIT = np.dtype(
    [("part", "i8"), ("token", "i8"), ("slot", "i8"), ("order", "f8")]
    + [(name, "f8") for name in ("influence", "activation", "projection")]
    + [(name, "i8") for name in _FACTS]
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
    asked: dict[str, Any] = {"by": by, "k": k, "site": site, "objective": objective, "include_special": include_special}
    question = resolve(store, **asked, allowed=TOKEN_VALUES, polarity=polarity)
    if context < 0:
        raise QueryError(f"got context = {context}; expected 0 or more tokens")
    number = check_latent(latent, question)
    selection = select(store, document=document, where=where)
    best = _leading_tokens(store, selection, number, question, smallest=smallest)
    if best is None:
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


def _leading_tokens(
    store: ScoreStore, selection: Selection, latent: int, question: Question, *, smallest: bool
) -> Array | None:
    """Return the first k hits in all documents from the index's lists; None where these may not be the answer."""
    wanted = needed_lists(question, smallest=smallest)
    if store.index is None or question.k is None or not (wanted and selection.is_all and are_of(store, question)):
        return None
    lists = [read_leaders(store.index, question, latent, which) for which in wanted]
    found = [one for one in lists if one is not None]
    if len(found) < len(wanted):
        return None
    hits = np.concatenate([_hits_of_list(selection, one.columns, question, smallest=smallest) for one in found])
    _, first = np.unique(np.stack([hits["part"], hits["token"]]), axis=1, return_index=True)
    best = _first(hits[first], question.k)
    # What is in no list lies behind the last of each list. A largest value of 0 may be that of many others too.
    is_certain = question.by in ("influence", "activation") or bool(np.all(best["order"][-1:] > 0))
    if all(one.is_all for one in found) or (question.k <= min(map(len, found)) and is_certain):
        return best
    return None


def _hits_of_list(selection: Selection, columns: Mapping[str, Array], question: Question, *, smallest: bool) -> Array:
    activation, projection = columns["activation"], columns["projection"]
    postings = Postings(
        token_P=columns["token"].astype(np.int64),
        slot_P=columns["document"].astype(np.int64),
        activation_P=activation.astype(np.float64),
        projection_P=projection * columns["scale"],
        influence_P=influence(activation, projection) * columns["scale"],
    )
    part_P = np.searchsorted([segment.index for segment, _ in selection.parts], columns["segment"])
    hits = _as_hits(part_P, postings, question, smallest=smallest)
    for name in _FACTS:
        hits[name] = columns[name]
    return hits


def _best_tokens(store: ScoreStore, selection: Selection, latent: int, question: Question, *, smallest: bool) -> Array:
    """Return the first k hits (`part` counts the selection's segments), visiting segments by falling bound."""
    parts = selection.parts
    bounds = _bounds(store, selection, latent, question, smallest=smallest)
    best, k = np.zeros(0, _HIT), question.k
    for part in sorted(range(len(parts)), key=lambda part: (-bounds[part], part)):
        # A tie in a segment that is left may come earlier in the corpus: only a strictly better hit ends the visit.
        if bounds[part] == -np.inf or (k is not None and len(best) == k and best["order"][-1] > bounds[part]):
            break
        segment, slots = parts[part]
        postings = read_postings(segment, latent, slots, question)
        best = _first(np.concatenate([best, _as_hits(part, postings, question, smallest=smallest)]), k)
    return best


def _first(hits: Array, k: int | None) -> Array:
    return hits[np.lexsort((hits["token"], hits["part"], -hits["order"]))[:k]]


def _bounds(store: ScoreStore, selection: Selection, latent: int, question: Question, *, smallest: bool) -> list[float]:
    """Return an upper bound of `order` in each part: -inf where the latent never fires, inf where none is known."""
    if question.include_special and not store.aggregates_include_special:
        return [np.inf] * len(selection.parts)  # the store's maxima leave out tokens that are asked for
    if store.index is None:
        return [_bound(segment, slots, latent, question, smallest=smallest) for segment, slots in selection]
    found = read_bounds(store.index, question.site, question.objective, latent, question.by)
    order_S = found.of_order(question.by, smallest=smallest)
    numbers = [segment.index for segment in store.segments]
    at = np.searchsorted(numbers, [segment.index for segment, _ in selection.parts])
    chosen: list[float] = order_S[at].tolist()
    return chosen


def _bound(segment: StoredSegment, slots: Array, latent: int, question: Question, *, smallest: bool) -> float:
    """Return the bound of a segment as its own maxima give it."""
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


def _as_hits(part: int | Array, postings: Postings, question: Question, *, smallest: bool) -> Array:
    hits = np.zeros(len(postings.token_P), _HIT)
    for name in _FACTS:
        hits[name] = -1
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
    facts = {name: best[name].copy() for name in _FACTS}
    vocabulary = functools.cache(store.token_strings)
    texts = {part: SegmentText(selection.parts[part][0], vocabulary) for part in np.unique(best["part"]).tolist()}
    for text in texts.values():
        text.expect()
    for part, text in texts.items():
        segment = selection.parts[part][0]
        for row in np.flatnonzero(best["part"] == part):
            token, slot = int(best["token"][row]), int(best["slot"][row])
            for name, column in facts.items():
                column[row] = text.fact(name, token) if column[row] < 0 else column[row]
            shown = text.around(slot, token, context)
            rows["document"][row] = segment.key_of(slot)
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
