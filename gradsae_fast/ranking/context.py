"""A token as a reader sees it: its text, and the text around it, cut from the document at character offsets.

Tokens that the tokenizer added (a BOS) have no characters. They stand between the characters of their neighbours and
are shown by their name in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array
from gradsae_fast.store.segment import StoredSegment


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """A token's own text and its surroundings; before + token + after is a piece of the document."""

    token: str
    before: str
    after: str


class SegmentText:
    """The texts and token offsets of a segment, read when the first token is shown."""

    def __init__(self, segment: StoredSegment, vocabulary: Sequence[str] | None) -> None:
        self._vocabulary = vocabulary or ()
        self._texts = segment.documents().text
        self._token_id = segment.token_column("token_id")
        self._start = segment.token_column("char_start").astype(np.int64)
        self._end = segment.token_column("char_end").astype(np.int64)
        document_N = segment.token_column("document")
        self._edges = np.searchsorted(document_N, np.arange(segment.num_documents + 1))

    def around(self, slot: int, token: int, num_context: int) -> TokenText:
        """Return a token (row of the segment's token table) of a document with `num_context` tokens on each side."""
        first = max(int(self._edges[slot]), token - num_context)
        last = min(int(self._edges[slot + 1]), token + 1 + num_context)
        start, end, text = int(self._start[token]), int(self._end[token]), self._texts[slot]
        before_from, before_to = _span(self._start[first:token], self._end[first:token], default=start)
        if start == end:
            start = end = before_to
        _, after_to = _span(self._start[token + 1 : last], self._end[token + 1 : last], default=end)
        return TokenText(
            token=text[start:end] or self._name(int(self._token_id[token])),
            before=text[before_from:start],
            after=text[end:after_to],
        )

    def _name(self, token_id: int) -> str:
        return self._vocabulary[token_id] if token_id < len(self._vocabulary) else f"<{token_id}>"


def _span(start: Array, end: Array, *, default: int) -> tuple[int, int]:
    """Return the first and one past the last character of those tokens that have any; the default twice without one."""
    written = end > start
    return (int(start[written].min()), int(end[written].max())) if written.any() else (default, default)
