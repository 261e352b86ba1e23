"""Making the index of a store: keys, bounds, totals of the whole corpus, and leading tokens.

Memory is that of one segment's sums of documents and of a run of its latents, and of what is kept: with O objectives
12 + 20·O bytes a latent and segment for the bounds, 25·O a latent and leading token in each of three lists, 24 a
document for the keys. So it grows with the number of segments, not with what is in them: 16,384 latents in 67 segments
have 35 MB of bounds, 131,072 in 10,000 segments 42 GB; a corpus of that size wants long segments.

Letters: N tokens of a segment, C latents, L latents of a run, Z their non-zeros, E leading tokens of all latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import BusyError, QueryError
from gradsae_fast.ranking.index.bounds import BoundsOfSite
from gradsae_fast.ranking.index.leaders import (
    LEADERS,
    LIMIT,
    LISTS,
    LeadersOfSite,
    entries_of,
    leader_arrays,
    num_leaders,
)
from gradsae_fast.ranking.index.totals import LatentTotals, total_arrays
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.ranking.selection import select
from gradsae_fast.ranking.tally import counted_tokens, document_scale, influence, scope, tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.format.polarity import POLARITIES
from gradsae_fast.store.keys import key_arrays
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.index import Placed, current_generation, publish_index

_RUN_ENTRIES = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What was written."""

    path: Place
    num_segments: int
    num_documents: int
    leaders: dict[str, int]  # leading tokens kept of each latent, by site; 0: none, as the store is small
    num_bytes: int


def build_index(store: str | Place, *, leaders: int | None = None) -> IndexReport:
    """Write the index of the segments that a store has now, in place of any other index.

    Args:
        store: the store's folder; no other process may write to it meanwhile.
        leaders: how many leading tokens of each latent to keep, at most 256; None: see `leaders.num_leaders`.

    Raises:
        QueryError: nothing is committed, or `leaders` is out of range.
        BusyError: another process writes to the store, or has changed it meanwhile (in a bucket, which has no lock).
        StoreError: it is missing, damaged or read-only.
    """
    if leaders is not None and not 0 <= leaders <= LIMIT:
        raise QueryError(f"got leaders = {leaders}; expected 0 to {LIMIT}, or None for a number that suits the store")
    path = place_of(store)
    opened = open_scores(path, use_index=False)
    if not opened.segments:
        raise QueryError(f"{path} has no committed segment to index; run the extraction again: it resumes")
    with locked(path):
        generation = current_generation(path)  # before the store is opened, and again when all of it is read
        opened = open_scores(path, use_index=False)
        kept = {site: _num_leaders(opened, site) if leaders is None else leaders for site in opened.sites}
        any_question = resolve(
            opened, by="influence", k=None, site=opened.sites[0], objective=opened.objectives[0], include_special=None
        )
        index = publish_index(
            path,
            generation,
            {segment.index: segment.summary for segment in opened.segments},
            _parts(opened, kept, generation),
            opened.profile,
            {"leaders": kept, "counted": scope(opened, select(opened), any_question)},
        )
    return IndexReport(
        path=path,
        num_segments=len(opened.segments),
        num_documents=opened.num_documents,
        leaders=kept,
        num_bytes=index.num_bytes,
    )


def _num_leaders(store: ScoreStore, site: str) -> int:
    nonzeros = sum(int(segment.summary.facts["counts"]["nnz"][site]) for segment in store.segments)
    return num_leaders(nonzeros, store.num_latents(site))


def _parts(store: ScoreStore, kept: dict[str, int], generation: str) -> Iterator[Placed]:
    yield key_arrays(store.segments)
    for site in store.sites:
        yield _site_arrays(store, site, kept[site])
    if current_generation(store.path) != generation:
        raise BusyError(
            f"{store.path}: another process has committed, dropped or compacted segments while its index was made; "
            f"none was written: run `gradsae index {store.path}` when it has ended"
        )


def _site_arrays(store: ScoreStore, site: str, num_kept: int) -> Placed:
    questions = {name: _question(store, site, name) for name in store.objectives}
    yield from _totals(store, site, questions)
    bounds = BoundsOfSite(store.num_latents(site), len(store.segments), store.objectives)
    lists = {name: LeadersOfSite(store.num_latents(site), num_kept) for name in questions if num_kept}
    for number, segment in enumerate(store.segments):
        _take_in(number, segment, site, questions, bounds, lists)
    yield from bounds.arrays(site)
    if lists:
        found = {(name, which): lists[name].entries(which) for name in lists for which in LISTS}
        edges_C = next(iter(found.values()))[0]
        yield from leader_arrays(
            site, edges_C, {key: _looked_up(store, questions[key[0]], entry_E) for key, (_, entry_E) in found.items()}
        )


def _question(store: ScoreStore, site: str, objective: str, polarity: str | None = None) -> Question:
    return resolve(
        store, by="influence", k=None, site=site, objective=objective, include_special=None, polarity=polarity
    )


def _totals(store: ScoreStore, site: str, questions: dict[str, Question]) -> Placed:
    """The totals of all documents, of each polarity too where activations have both signs."""
    signed = any(segment.site(site).is_signed for segment in store.segments)
    for objective in questions:
        for polarity in (None, *POLARITIES) if signed else (None,):
            totals = LatentTotals(_question(store, site, objective, polarity))
            for segment in store.segments:
                totals.add(tally(store, segment, np.arange(segment.num_documents), totals.question))
            yield from total_arrays(totals)


def _take_in(
    number: int,
    segment: StoredSegment,
    site: str,
    questions: dict[str, Question],
    bounds: BoundsOfSite,
    lists: dict[str, LeadersOfSite],
) -> None:
    """Take the bounds and leading tokens of one segment, run by run of latents."""
    scores, any_question = segment.site(site), next(iter(questions.values()))
    document_N, counted_N = counted_tokens(segment, any_question)
    scale_N = {name: document_scale(segment, question)[document_N] for name, question in questions.items()}
    for start, stop in scores.latent_runs(_RUN_ENTRIES):
        edges_L, token_Z, activation_Z, projections = scores.by_latents(start, stop)
        keep_Z = counted_N[token_Z]
        edges_L = np.concatenate([[0], np.cumsum(keep_Z)])[edges_L]
        token_Z, activation_Z = token_Z[keep_Z], activation_Z[keep_Z]
        kept = {name: values[keep_Z] for name, values in projections.items()}
        influences = {name: influence(activation_Z, kept[name]) * scale_N[name][token_Z] for name in questions}
        bounds.add(number, start, edges_L, document_N[token_Z], activation_Z.astype(np.float64), influences)
        for name, leading in lists.items():
            entry_Z = entries_of(token_Z, activation_Z, kept[name])
            leading.add(segment.index, start, edges_L, entry_Z, influences[name])


def _looked_up(store: ScoreStore, question: Question, entry_E: Array) -> dict[str, Array]:
    """The columns of a list: what is known of each token besides its scores is looked up segment by segment."""
    columns: dict[str, Any] = {spec.name: np.zeros(len(entry_E), spec.dtype) for spec in LEADERS}
    for name in ("segment", "token", "activation", "projection"):
        columns[name][:] = entry_E[name]
    order_E = np.argsort(entry_E["segment"], kind="stable")
    numbers = [segment.index for segment in store.segments]
    edges_S = np.searchsorted(entry_E["segment"][order_E], [*numbers, numbers[-1] + 1])
    for segment, first, last in zip(store.segments, edges_S, edges_S[1:], strict=False):
        at = order_E[first:last]
        token = entry_E["token"][at]
        for name in ("document", "position", "context", "mask"):
            columns[name][at] = segment.token_column(name)[token]
        columns["scale"][at] = document_scale(segment, question)[columns["document"][at]]
    return columns
