"""The documents and tokens that two stores have in common, as pairs of sparse matrices with the same rows.

Documents are matched by their keys. Rows are documents, with the mean score per counted token, or tokens, with the
token's scores. Tokens can be matched where both stores have the same token ids in every matched document; a token is a
row where it counts in both. Both kinds come in parts: at most a segment of documents, or `RUN_TOKENS` tokens; of all
documents only the keys are held. Stores whose documents are in one order are read once; where B has another order, a
segment of B is read for every segment of A that it shares documents with.

Letters: D matched documents that share a segment of A and a segment of B, N tokens, Z non-zeros of a run of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.samples import finite_or_nan, samples
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.ranking.tally import RUN_TOKENS, counted_tokens, document_lengths, document_scale, influence
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

Rows = tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]  # of A and of B, float64 [rows, latents of each]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One of the two stores, and what is asked of it."""

    store: ScoreStore
    question: Question


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Documents that lie together in one segment of A and in one of B; entry d of both columns is one document."""

    segment_a: StoredSegment
    segment_b: StoredSegment
    slot_a_D: Array  # int64, ascending
    slot_b_D: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matching:
    """The documents that two stores have in common, with a counted token in each."""

    a: Side
    b: Side
    groups: tuple[Group, ...]
    num_documents: int
    num_tokens: int  # counted in A
    num_only_a: int  # chosen documents of A that B does not have
    num_only_b: int  # documents of B that A does not have
    num_unequal: int  # matched documents with another number of counted tokens in A than in B

    def document_rows(self) -> Iterator[Rows]:
        """Yield the documents' mean scores per counted token."""
        for group in self.groups:
            yield (
                _samples(self.a, group.segment_a, group.slot_a_D),
                _samples(self.b, group.segment_b, group.slot_b_D),
            )

    def token_rows(self) -> Iterator[Rows]:
        """Yield the scores of the tokens that count in both stores; `unlike_document` must have found none."""
        for group in self.groups:
            document_a, counted_a = counted_tokens(group.segment_a, self.a.question)
            document_b, counted_b = counted_tokens(group.segment_b, self.b.question)
            for at_a, at_b in _runs(group, document_a, document_b):
                keep_N = counted_a[at_a] & counted_b[at_b]
                yield (
                    _scores(self.a, group.segment_a, at_a, document_a)[keep_N],
                    _scores(self.b, group.segment_b, at_b, document_b)[keep_N],
                )

    def unlike_document(self) -> str | None:
        """Return the key of a matched document whose token ids are not the same in both stores, or None."""
        for group in self.groups:
            ids_a, ids_b = (segment.token_column("token_id") for segment in (group.segment_a, group.segment_b))
            edges_a, edges_b = _edges(group.segment_a), _edges(group.segment_b)
            for slot_a, slot_b in zip(group.slot_a_D.tolist(), group.slot_b_D.tolist(), strict=True):
                tokens_a = ids_a[edges_a[slot_a] : edges_a[slot_a + 1]]
                if not np.array_equal(tokens_a, ids_b[edges_b[slot_b] : edges_b[slot_b + 1]]):
                    return group.segment_a.document_keys()[slot_a]
        return None


def match_documents(a: Side, b: Side, where: str | None) -> Matching:
    """Match the documents of A that meet a condition with those of B that have the same keys.

    Raises:
        QueryError: no chosen document of A is in B with a counted token in both, or the condition cannot be answered.
    """
    places_b = _places(b.store)
    keys_a = {key for segment in a.store.segments for key in segment.document_keys()}
    lengths_b = [document_lengths(b.store, segment, b.question) for segment in b.store.segments]
    groups, num_tokens, num_unequal, num_only_a = list[Group](), 0, 0, 0
    for segment, slots in select(a.store, where=where):
        keys = segment.document_keys()
        found = np.array([places_b.get(keys[slot], (-1, -1)) for slot in slots], np.int64).reshape(-1, 2)
        num_only_a += int(np.count_nonzero(found[:, 0] < 0))
        length_a = document_lengths(a.store, segment, a.question)
        for part in np.unique(found[found[:, 0] >= 0, 0]):
            of_part = found[:, 0] == part
            slot_a, slot_b = slots[of_part], found[of_part, 1]
            counted = (length_a[slot_a] > 0) & (lengths_b[part][slot_b] > 0)
            slot_a, slot_b = slot_a[counted], slot_b[counted]
            num_tokens += int(length_a[slot_a].sum())
            num_unequal += int(np.count_nonzero(length_a[slot_a] != lengths_b[part][slot_b]))
            if len(slot_a):
                segment_b = b.store.segments[part]
                groups.append(Group(segment_a=segment, segment_b=segment_b, slot_a_D=slot_a, slot_b_D=slot_b))
    if not groups:
        raise QueryError(
            f"{a.store.path} and {b.store.path} have no document with a counted token in common; expected stores of "
            f"one corpus, matched by document keys: {_first_key(a.store)!r} is one of A, {_first_key(b.store)!r} of B"
        )
    return Matching(
        a=a,
        b=b,
        groups=tuple(groups),
        num_documents=sum(len(group.slot_a_D) for group in groups),
        num_tokens=num_tokens,
        num_only_a=num_only_a,
        num_only_b=len(places_b.keys() - keys_a),
        num_unequal=num_unequal,
    )


def _places(store: ScoreStore) -> dict[str, tuple[int, int]]:
    """Return where every document lies: number of the segment in `store.segments`, and slot in it."""
    return {
        key: (part, slot)
        for part, segment in enumerate(store.segments)
        for slot, key in enumerate(segment.document_keys())
    }


def _first_key(store: ScoreStore) -> str:
    return store.segments[0].document_keys()[0]


def _samples(side: Side, segment: StoredSegment, slot_D: Array) -> scipy.sparse.csr_array:
    order = np.argsort(slot_D)
    chosen = Selection(parts=((segment, slot_D[order]),))
    return samples(side.store, chosen, side.question).matrix[np.argsort(order)]


def _edges(segment: StoredSegment) -> Array:
    """Return the first token of every document of a segment, and the end of the last, int64."""
    return np.searchsorted(segment.token_column("document"), np.arange(segment.num_documents + 1))


def _runs(group: Group, document_a_N: Array, document_b_N: Array) -> Iterator[tuple[slice, slice]]:
    """Cut the group's tokens into runs of at most RUN_TOKENS that are contiguous in both segments."""
    first_a, first_b = (
        np.searchsorted(document_N, slot_D)
        for document_N, slot_D in ((document_a_N, group.slot_a_D), (document_b_N, group.slot_b_D))
    )
    length = np.searchsorted(document_a_N, group.slot_a_D, side="right") - first_a
    follows = (first_a[1:] == first_a[:-1] + length[:-1]) & (first_b[1:] == first_b[:-1] + length[:-1])
    for documents in np.split(np.arange(len(length)), np.flatnonzero(~follows) + 1):
        start_a, start_b, num_tokens = first_a[documents[0]], first_b[documents[0]], length[documents].sum()
        for done in range(0, num_tokens, RUN_TOKENS):
            stop = min(done + RUN_TOKENS, num_tokens)
            yield slice(start_a + done, start_a + stop), slice(start_b + done, start_b + stop)


def _scores(side: Side, segment: StoredSegment, at: slice, document_N: Array) -> scipy.sparse.csr_array:
    """Return what the question asks of each token of a run, float64 [N, latents]."""
    question = side.question
    scores = segment.site(question.site).by_token(at.start, at.stop)
    scale_Z = np.repeat(document_scale(segment, question)[document_N[at]], np.diff(scores.indptr))
    influence_Z = influence(scores.activation, scores.projections[question.objective]) * scale_Z
    values = {
        "influence": influence_Z,
        "positive": np.maximum(influence_Z, 0),
        "absolute": np.abs(influence_Z),
        "activation": scores.activation.astype(np.float64),
        "frequency": np.ones(len(influence_Z)),
    }
    shape = (len(scores.indptr) - 1, question.num_latents)
    return scipy.sparse.csr_array((finite_or_nan(values[question.by]), scores.indices, scores.indptr), shape=shape)
