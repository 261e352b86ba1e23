"""A token as a reader sees it: its text, and the text around it, cut from the document at character offsets.

Tokens that the tokenizer added (a BOS) have no characters. They stand between the characters of their neighbours and
are shown by their name in the vocabulary.

W tokens of a document around one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array
from gradsae_fast.store.segment import StoredSegment

_BLOCK = 1 << 16  # rows; a chunk of a column has at most as many

_READ = (
    *(f"tokens/{name}" for name in ("document", "char_start", "char_end")),
    *(f"documents/{name}/{part}" for name in ("key", "text") for part in ("offsets", "bytes")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """A token's own text and its surroundings; before + token + after is a piece of the document."""

    token: str
    before: str
    after: str


class SegmentText:
    """The texts and token offsets of a segment, read where tokens are shown and kept for their neighbours.

    Args:
        segment: where the tokens are.
        vocabulary: the string of every vocabulary id, or what reads them: it is called for the first token that has no
            characters.
    """

    def __init__(
        self, segment: StoredSegment, vocabulary: Sequence[str] | Callable[[], Sequence[str] | None] | None
    ) -> None:
        self._segment = segment
        self._vocabulary = vocabulary
        self._blocks: dict[tuple[str, int], Array] = {}
        self._texts: dict[int, str] = {}

    def expect(self) -> None:
        """Tell the system that texts will be read: asked of many segments first, all are waited for at once."""
        self._segment.expect(_READ)

    def around(self, slot: int, token: int, num_context: int) -> TokenText:
        """Return a token (row of the segment's token table) of a document with `num_context` tokens on each side."""
        from_row, to_row = max(0, token - num_context), min(self._segment.num_tokens, token + 1 + num_context)
        rows = from_row + np.flatnonzero(self._rows("document", from_row, to_row) == slot)
        first, last = int(rows[0]), int(rows[-1]) + 1
        start_W, end_W = (self._rows(name, first, last).astype(np.int64) for name in ("char_start", "char_end"))
        at = token - first
        start, end, text = int(start_W[at]), int(end_W[at]), self._text(slot)
        before_from, before_to = _span(start_W[:at], end_W[:at], default=start)
        if start == end:
            start = end = before_to
        _, after_to = _span(start_W[at + 1 :], end_W[at + 1 :], default=end)
        return TokenText(
            token=text[start:end] or self._name(self.fact("token_id", token)),
            before=text[before_from:start],
            after=text[end:after_to],
        )

    def fact(self, column: str, token: int) -> int:
        """Return a column of the token table at one token."""
        return int(self._rows(column, token, token + 1)[0])

    def _text(self, slot: int) -> str:
        if slot not in self._texts:
            self._texts[slot] = self._segment.text_of(slot)
        return self._texts[slot]

    def _rows(self, column: str, start: int, stop: int) -> Array:
        """Read rows of a column; what is decoded with them is kept, as neighbours are often shown too."""
        parts = [np.zeros(0, np.int64)]
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):
            first = block * _BLOCK
            if (column, block) not in self._blocks:
                last = min(first + _BLOCK, self._segment.num_tokens)
                self._blocks[column, block] = self._segment.token_column(column, first, last)
            parts.append(self._blocks[column, block][max(0, start - first) : stop - first])
        return np.concatenate(parts)

    def _name(self, token_id: int) -> str:
        if callable(self._vocabulary):
            self._vocabulary = self._vocabulary()
        vocabulary = self._vocabulary or ()
        return vocabulary[token_id] if token_id < len(vocabulary) else f"<{token_id}>"


def _span(start: Array, end: Array, *, default: int) -> tuple[int, int]:
    """Return the first and one past the last character of those tokens that have any; the default twice without one."""
    written = end > start
    return (int(start[written].min()), int(end[written].max())) if written.any() else (default, default)
