"""Which pairs of latents are tied most strongly across the network between two dictionaries, and on which tokens.

An edge is a pair (upper latent, lower latent); its numbers are over the tokens that count (masked ones are left out):

    count     tokens on which both are active       sum       Σ J, signed
    absolute  Σ |J|                                 mean      Σ J / count
    maximum   max |J|                               mean_absolute  Σ |J| / count

J is the change of the upper latent per unit of the lower one: [upper activation / lower activation].
Positive: more of the lower latent, more of the upper one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.jacobian.edges import Edges, block_edges, merge_edges
from gradsae_fast.jacobian.store import JacobianStore, StoredJacobian, open_jacobian
from gradsae_fast.ranking.columns import text_column
from gradsae_fast.ranking.question import one_of
from gradsae_fast.records import Array
from gradsae_fast.store.arrays.metadata import CHUNK_ELEMENTS

EDGE_VALUES = ("absolute", "mean_absolute", "sum", "mean", "maximum", "count")
TOKEN_VALUES = ("absolute", "value")


def rank_edges(
    path: str | Path,
    *,
    latent_out: int | None = None,
    latent_in: int | None = None,
    by: str = "absolute",
    k: int | None = 20,
    smallest: bool = False,
) -> pa.Table:
    """Rank edges over all committed segments; with a latent given, those of that latent alone.

    Returns rank, latent_out, latent_in and the six numbers of the module's heading; ties go to the smaller latents.
    Raises QueryError for a latent or a name that does not exist.
    """
    store = _open(path, k)
    one_of("by", by, EDGE_VALUES)
    _check_latents(store, latent_out, latent_in)
    edges = merge_edges([])
    for segment in store.segments:
        edges = merge_edges([edges, _edges(segment, latent_out, latent_in)])
    columns = _edge_columns(edges)
    order = np.lexsort((edges.lower_R, edges.upper_R, columns[by] if smallest else -columns[by]))[:k]
    table = {"latent_out": edges.upper_R, "latent_in": edges.lower_R, **columns}
    return _table(store, {name: values[order] for name, values in table.items()}, by=by, k=k, smallest=smallest)


def rank_edge_tokens(
    path: str | Path,
    *,
    latent_out: int,
    latent_in: int,
    by: str = "absolute",
    k: int | None = 20,
    smallest: bool = False,
    context: int = 10,
) -> pa.Table:
    """Rank the counted tokens on which one edge is there, by |J| (`absolute`) or by J (`value`).

    Returns rank, document, position, token, value (J), activation_out, activation_in, before and after (`context`
    tokens of text on each side). Ties keep corpus order. Raises QueryError for a latent or a name that does not exist.
    """
    store = _open(path, k)
    one_of("by", by, TOKEN_VALUES)
    if context < 0:
        raise QueryError(f"got context = {context}; expected 0 or more tokens on each side")
    _check_latents(store, latent_out, latent_in)
    hits = [hit for segment in store.segments for hit in _hits(segment, latent_out, latent_in)]
    value_H = np.array([hit.value for hit in hits], np.float64)
    score_H = np.abs(value_H) if by == "absolute" else value_H
    order = np.argsort(score_H if smallest else -score_H, kind="stable")[:k]
    columns = _described([hits[index] for index in order.tolist()], context)
    return _table(store, columns, by=by, k=k, smallest=smallest, latent_out=latent_out, latent_in=latent_in)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Hit:
    """One token on which an edge is there."""

    segment: StoredJacobian
    token: int
    value: float
    activation_out: float
    activation_in: float


def _hits(segment: StoredJacobian, latent_out: int, latent_in: int) -> Iterator[_Hit]:
    """The counted tokens of a segment on which both latents are active, in corpus order."""
    lower, upper = segment.read("lower/indptr"), segment.read("upper/indptr")
    at_lower = _entries(segment, "lower", latent_in, lower)
    at_upper = _entries(segment, "upper", latent_out, upper)
    counted = segment.read("tokens/mask") == 0
    token_H = np.flatnonzero((at_lower >= 0) & (at_upper >= 0) & counted)
    if len(token_H) == 0:
        return
    width_H = np.diff(lower)[token_H]
    place_H = (at_upper - upper[:-1])[token_H] * width_H + (at_lower - lower[:-1])[token_H]
    value_H = _scattered(segment, block_edges(lower, upper)[token_H] + place_H)
    activation_in = segment.read("lower/activation")[at_lower[token_H]]
    activation_out = segment.read("upper/activation")[at_upper[token_H]]
    for row, token in enumerate(token_H.tolist()):
        yield _Hit(
            segment=segment,
            token=token,
            value=float(value_H[row]),
            activation_out=float(activation_out[row]),
            activation_in=float(activation_in[row]),
        )


def _entries(segment: StoredJacobian, group: str, latent: int, indptr: Array) -> Array:
    """The entry of a latent on each token, -1 where it is not active [N]."""
    entry = np.flatnonzero(segment.read(f"{group}/indices") == latent)
    found = np.full(len(indptr) - 1, -1, np.int64)
    found[np.searchsorted(indptr, entry, side="right") - 1] = entry
    return found


def _scattered(segment: StoredJacobian, place_H: Array) -> Array:
    """Values at ascending places; every chunk that holds some is read once."""
    stored = segment.array("value")
    values = np.zeros(len(place_H))
    for chunk in np.unique(place_H // CHUNK_ELEMENTS).tolist():
        start = chunk * CHUNK_ELEMENTS
        here = (place_H >= start) & (place_H < start + CHUNK_ELEMENTS)
        values[here] = stored.read(start, min(start + CHUNK_ELEMENTS, len(stored)))[place_H[here] - start]
    return values


def _described(hits: list[_Hit], context: int) -> dict[str, Array | pa.Array]:
    """Columns of the hits: keys and texts are read once per segment."""
    texts = {hit.segment.index: _SegmentText(hit.segment) for hit in hits}
    shown = [texts[hit.segment.index].around(hit.token, context) for hit in hits]
    return {
        "document": text_column([text[0] for text in shown]),
        "position": np.array([text[1] for text in shown], np.int64),
        "token": text_column([text[2] for text in shown]),
        "value": np.array([hit.value for hit in hits], np.float64),
        "activation_out": np.array([hit.activation_out for hit in hits], np.float64),
        "activation_in": np.array([hit.activation_in for hit in hits], np.float64),
        "before": text_column([text[3] for text in shown]),
        "after": text_column([text[4] for text in shown]),
    }


class _SegmentText:
    """Keys, texts and character offsets of a segment."""

    def __init__(self, segment: StoredJacobian) -> None:
        self.keys, self.texts = segment.strings("key"), segment.strings("text")
        names = ("document", "position", "char_start", "char_end")
        self.document, self.position, self.start, self.end = (
            segment.read(f"tokens/{name}").astype(np.int64) for name in names
        )

    def around(self, token: int, context: int) -> tuple[str, int, str, str, str]:
        """Document key, position, the token's text, and the text of `context` tokens before and after it."""
        slot = int(self.document[token])
        first, last = np.searchsorted(self.document, [slot, slot + 1])
        before = int(self.start[max(int(first), token - context)])
        after = int(self.end[min(int(last) - 1, token + context)])
        text, start, end = self.texts[slot], int(self.start[token]), int(self.end[token])
        return self.keys[slot], int(self.position[token]), text[start:end], text[before:start], text[end:after]


def _edges(segment: StoredJacobian, latent_out: int | None, latent_in: int | None) -> Edges:
    """The stored edges of a segment: all, those of one upper latent, or of one lower one."""
    indptr = segment.read("edges/indptr")
    first, last = (0, int(indptr[-1])) if latent_out is None else indptr[latent_out : latent_out + 2].tolist()
    read = {name: segment.array(f"edges/{name}").read(first, last) for name in ("lower", "count", "sum", "absolute")}
    maximum = segment.array("edges/maximum").read(first, last)
    upper = np.searchsorted(indptr, np.arange(first, last), side="right") - 1
    kept = slice(None) if latent_in is None else read["lower"] == latent_in
    return Edges(
        upper_R=upper[kept],
        lower_R=read["lower"][kept].astype(np.int64),
        count_R=read["count"][kept].astype(np.int64),
        sum_R=read["sum"][kept],
        absolute_R=read["absolute"][kept],
        maximum_R=maximum[kept].astype(np.float64),
    )


def _edge_columns(edges: Edges) -> dict[str, Array]:
    return {
        "count": edges.count_R,
        "sum": edges.sum_R,
        "mean": edges.sum_R / edges.count_R,
        "absolute": edges.absolute_R,
        "mean_absolute": edges.absolute_R / edges.count_R,
        "maximum": edges.maximum_R,
    }


def _open(path: str | Path, k: int | None) -> JacobianStore:
    store = open_jacobian(path)
    if not store.segments:
        raise QueryError(f"{store.path} has no committed segment; run the same `gradsae jacobian extract` again")
    if k is not None and k < 1:
        raise QueryError(f"got k = {k}; expected 1 or more, or None for all")
    return store


def _check_latents(store: JacobianStore, latent_out: int | None, latent_in: int | None) -> None:
    for name, latent, width in (
        ("latent_in", latent_in, store.num_latents[0]),
        ("latent_out", latent_out, store.num_latents[1]),
    ):
        if latent is not None and not 0 <= latent < width:
            raise QueryError(f"got {name} = {latent}; expected 0 to {width - 1}, the latents of that dictionary")


def _table(store: JacobianStore, columns: dict[str, Array | pa.Array], **question: object) -> pa.Table:
    """The Arrow table; its metadata says what the numbers mean, as JSON values."""
    identity = store.run.identity["jacobian"]
    facts = {
        "unit": "upper activation per lower activation",
        "sign": "positive: more of the lower latent, more of the upper one",
        "site_in": identity["site_in"],
        "site_out": identity["site_out"],
        "point": identity["point"],
        "includes_special": False,
        **question,
    }
    ranks = np.arange(1, 1 + len(next(iter(columns.values()))), dtype=np.int64)
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    return pa.table({"rank": ranks, **columns}).replace_schema_metadata(metadata)
