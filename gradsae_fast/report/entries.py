"""The scores of the shown latents, read in runs of tokens: what walks over a store are made of.

Letters: N tokens of a segment, M its documents, C latents, Z entries of a run. A run is bounded, so memory does not
grow with the corpus, a document or the number of latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradsae_fast import records
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.tally import document_scale, influence
from gradsae_fast.records import Array
from gradsae_fast.store.segment import StoredSegment

RUN_TOKENS = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entries:
    """Active latents on counted tokens of a run, tokens ascending; `row_Z` is what `rows_C` says of the latent."""

    token_Z: Array  # int64, row in the segment's token table
    row_Z: Array  # int64
    activation_Z: Array  # float64
    influence_Z: Array  # float64, in the objective's unit


class SegmentEntries:
    """One segment, opened for reading runs."""

    def __init__(self, segment: StoredSegment, question: Question, rows_C: Array) -> None:
        self._site = segment.site(question.site)
        self._objective = question.objective
        self._rows_C = rows_C
        self._scale_M = document_scale(segment, question)
        self.num_tokens = segment.num_tokens
        self.document_N = segment.token_column("document").astype(np.int64)
        self.mask_N = segment.token_column("mask")
        self.counted_N = records.counted_tokens(self.mask_N, question.include_special)

    def runs(self) -> Iterator[Entries]:
        """Yield the entries of all tokens, in order."""
        for start in range(0, self.num_tokens, RUN_TOKENS):
            yield self.read(start, min(start + RUN_TOKENS, self.num_tokens))

    def read(self, start: int, stop: int) -> Entries:
        """Return the entries of tokens `start` to `stop`."""
        scores = self._site.by_token(start, stop)
        token_Z = start + np.repeat(np.arange(stop - start), np.diff(scores.indptr))
        row_Z = self._rows_C[scores.indices]
        keep_Z = (row_Z >= 0) & self.counted_N[token_Z]
        token_Z = token_Z[keep_Z]
        influence_Z = influence(scores.activation[keep_Z], scores.projections[self._objective][keep_Z])
        return Entries(
            token_Z=token_Z,
            row_Z=row_Z[keep_Z],
            activation_Z=scores.activation[keep_Z].astype(np.float64),
            influence_Z=influence_Z * self._scale_M[self.document_N[token_Z]],
        )
