"""The text around tokens, piece by piece, with what one latent does on each.

A piece is what one token adds to the text. Tokens without characters of their own (a BOS, the later bytes of a split
character) are shown by their name in the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array
from gradsae_fast.report.entries import RUN_TOKENS, SegmentEntries
from gradsae_fast.report.subject import Subject
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.visible import cut, visible, word

PIECE_CHARACTERS = 48
WORD_CHARACTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token's text, made visible and cut."""

    text: str
    is_name: bool = False  # of the vocabulary: the text has no character of it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passage:
    """A hit with its surroundings. T tokens."""

    key: str
    document: int  # in the corpus, counted from 0
    position: int  # of the hit in its document
    peak: int  # of the hit among the T
    pieces: tuple[Piece, ...]
    influence_T: Array  # float64; 0 where the latent is not active, or the token does not count
    activation_T: Array
    counted_T: Array  # bool

    @property
    def word(self) -> str:
        """The token of the hit, in few characters."""
        return cut(word(self.pieces[self.peak].text), WORD_CHARACTERS)


class SegmentPieces:
    """The texts and token offsets of a segment."""

    def __init__(self, segment: StoredSegment, vocabulary: Sequence[str]) -> None:
        documents = segment.documents()
        self.keys = documents.key
        self._vocabulary = vocabulary
        self._texts = documents.text
        self._token_id = segment.token_column("token_id")
        self._start = segment.token_column("char_start").astype(np.int64)
        self._end = segment.token_column("char_end").astype(np.int64)
        document_N = segment.token_column("document")
        self.edges = np.searchsorted(document_N, np.arange(segment.num_documents + 1))

    def pieces(self, slot: int, first: int, last: int) -> tuple[Piece, ...]:
        """Return the pieces of tokens `first` to `last` (rows of the token table) of a document."""
        text, found = self._texts[slot], list[Piece]()
        end_T = self._end[first:last]
        written = end_T > self._start[first:last]
        at = int(self._start[first:last][written].min()) if written.any() else 0
        for token, end in zip(range(first, last), end_T.tolist(), strict=True):
            if end > at:
                found.append(Piece(text=visible(text[at : min(end, at + PIECE_CHARACTERS)]) + _rest(end - at)))
                at = end
            else:
                found.append(Piece(text=cut(self._name(token), PIECE_CHARACTERS), is_name=True))
        return tuple(found)

    def _name(self, token: int) -> str:
        token_id = int(self._token_id[token])
        return self._vocabulary[token_id] if token_id < len(self._vocabulary) else f"<{token_id}>"


def _rest(length: int) -> str:
    left_out = length - PIECE_CHARACTERS
    return f"… [{left_out:,} more characters]" if left_out > 0 else ""


def read_passages(
    subject: Subject, hits: Mapping[tuple[int, str], Array], context: int
) -> dict[tuple[int, str], list[Passage]]:
    """Read the surroundings of hits, visiting each segment once and only runs of tokens that hold a hit.

    Args:
        subject: the audit's.
        hits: lists of HIT, by row and end.
        context: tokens on each side, of the same document.

    Returns: for each list its passages, in its order.
    """
    joined = np.concatenate(list(hits.values()))
    passages: list[Passage | None] = [None] * len(joined)
    first_document = 0
    for number, segment in enumerate(subject.store.segments):
        chosen = np.flatnonzero(joined["segment"] == number)
        if len(chosen):
            for at, passage in _segment_passages(subject, segment, joined[chosen], context, first_document):
                passages[chosen[at]] = passage
        first_document += segment.num_documents
    ends = np.cumsum([0, *map(len, hits.values())]).tolist()
    complete = [passage for passage in passages if passage is not None]
    return {name: complete[ends[i] : ends[i + 1]] for i, name in enumerate(hits)}


def _segment_passages(
    subject: Subject, segment: StoredSegment, hits: Array, context: int, first_document: int
) -> list[tuple[int, Passage]]:
    entries = SegmentEntries(segment, subject.question, subject.rows_C)
    text = SegmentPieces(segment, subject.vocabulary)
    position_N = segment.token_column("position")
    found = []
    for run in np.unique(hits["token"] // RUN_TOKENS).tolist():
        start, stop = max(0, run * RUN_TOKENS - context), min(segment.num_tokens, (run + 1) * RUN_TOKENS + context)
        table = _RunTable(entries, start, stop)
        for at in np.flatnonzero(hits["token"] // RUN_TOKENS == run).tolist():
            token, row = int(hits["token"][at]), int(hits["row"][at])
            slot = int(entries.document_N[token])
            first = max(int(text.edges[slot]), token - context)
            last = min(int(text.edges[slot + 1]), token + 1 + context)
            influence_T, activation_T = table.of(row, first, last)
            passage = Passage(
                key=text.keys[slot],
                document=first_document + slot,
                position=int(position_N[token]),
                peak=token - first,
                pieces=text.pieces(slot, first, last),
                influence_T=influence_T,
                activation_T=activation_T,
                counted_T=entries.counted_N[first:last],
            )
            found.append((at, passage))
    return found


class _RunTable:
    """The entries of a run in order of latent and token."""

    def __init__(self, entries: SegmentEntries, start: int, stop: int) -> None:
        run = entries.read(start, stop)
        self._stride = entries.num_tokens + 1
        key_Z = run.row_Z * self._stride + run.token_Z
        order = np.argsort(key_Z)
        self._key_Z, self._token_Z = key_Z[order], run.token_Z[order]
        self._influence_Z, self._activation_Z = run.influence_Z[order], run.activation_Z[order]

    def of(self, row: int, first: int, last: int) -> tuple[Array, Array]:
        """Return influence and activation of a latent on tokens `first` to `last`, 0 where it is silent."""
        bounds = np.array([first, last]) + row * self._stride
        begin, end = np.searchsorted(self._key_Z, bounds).tolist()
        influence_T, activation_T = np.zeros(last - first), np.zeros(last - first)
        at = self._token_Z[begin:end] - first
        influence_T[at], activation_T[at] = self._influence_Z[begin:end], self._activation_Z[begin:end]
        return influence_T, activation_T
