"""The non-zeros of the chosen documents as a stream of runs, each small enough for memory.

Letters: N tokens and M documents of a segment, S chosen documents, R counted tokens of a run, Z their non-zeros.

A run has about half a million non-zeros, whatever the corpus and the SAE: at 60 bytes each, some 30 MB. Beside it lies
one segment's table of tokens, at 30 bytes each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import SupportsIndex

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.question import Question, check_latent
from gradsae_fast.ranking.selection import Selection
from gradsae_fast.ranking.tally import counted_tokens, document_scale
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

RUN_NONZEROS = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentTokens:
    """The tokens of one segment, and which of them are exported."""

    segment: StoredSegment
    slots_S: Array  # int64, positions in the segment of the chosen documents
    part: int  # number of the segment among those of the selection
    first_document: int  # documents of the store's committed segments before this one
    document_N: Array  # int64, position in the segment
    position_N: Array  # uint32, position in the document
    token_id_N: Array  # uint32
    mask_N: Array  # uint8, bits of TokenMask
    chosen_N: Array  # bool: a counted token of a chosen document
    scale_M: Array | None  # float64, factor of projections and influences; None: 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """The non-zeros of neighbouring tokens, in order of token and latent."""

    tokens: SegmentTokens
    token_R: Array  # int64, row in the segment's table of tokens
    length_R: Array  # int64, non-zeros of each
    latent_Z: Array  # int32
    activation_Z: Array  # float32
    projection_Z: Array  # float32; float64 where influences are scaled (`continuation-prob`)
    influence_Z: Array  # activation * projection, multiplied in float32; float64 where scaled

    @property
    def token_Z(self) -> Array:
        """Row of each non-zero's token in the segment's table of tokens."""
        return np.repeat(self.token_R, self.length_R)


def value_dtype(question: Question) -> np.dtype[np.floating]:
    """Return the dtype of projections and influences: float64 where they are scaled by a probability, which may be
    smaller than any float32; else float32, which is all that a store keeps."""
    return np.dtype(np.float64 if question.objective == "continuation-prob" else np.float32)


def check_latents(latent: SupportsIndex | Sequence[int] | None, question: Question) -> Array | None:
    """Return the chosen latents, ascending and each once; None for all.

    Raises:
        QueryError: the list is empty, or the site's SAE has no such latent.
    """
    if latent is None:
        return None
    asked = [latent] if isinstance(latent, SupportsIndex) else list(latent)
    if not asked:
        raise QueryError("got an empty list of latents; expected at least one number, or None for all latents")
    return np.unique(np.array([check_latent(number, question) for number in asked], np.int64))


def read_tokens(store: ScoreStore, selection: Selection, question: Question) -> Iterator[SegmentTokens]:
    """Yield the tokens of each chosen segment."""
    first = first_documents(store)
    scaled = value_dtype(question) == np.float64
    for part, (segment, slots_S) in enumerate(selection):
        document_N, counted_N = counted_tokens(segment, question)
        chosen_M = np.zeros(segment.num_documents, bool)
        chosen_M[slots_S] = True
        yield SegmentTokens(
            segment=segment,
            slots_S=slots_S,
            part=part,
            first_document=first[segment.index],
            document_N=document_N,
            position_N=segment.token_column("position"),
            token_id_N=segment.token_column("token_id"),
            mask_N=segment.token_column("mask"),
            chosen_N=counted_N & chosen_M[document_N],
            scale_M=document_scale(segment, question) if scaled else None,
        )


def read_runs(tokens: SegmentTokens, question: Question, latents: Array | None) -> Iterator[Run]:
    """Yield the chosen non-zeros of a segment, run by run; runs without a chosen token are not read."""
    num_tokens = len(tokens.chosen_N)
    nonzeros = tokens.segment.commit["counts"]["nnz"][question.site]
    step = max(1, RUN_NONZEROS * num_tokens // max(nonzeros, 1))
    wanted_C = None if latents is None else np.isin(np.arange(question.num_latents), latents)
    for start in range(0, num_tokens, step):
        chosen = start + np.flatnonzero(tokens.chosen_N[start : start + step])
        if len(chosen):
            yield _read_run(tokens, chosen, question, wanted_C)


def _read_run(tokens: SegmentTokens, chosen_R: Array, question: Question, wanted_C: Array | None) -> Run:
    start, stop = int(chosen_R[0]), int(chosen_R[-1]) + 1
    scores = tokens.segment.site(question.site).by_token(start, stop)
    keep_Z = np.repeat(tokens.chosen_N[start:stop], np.diff(scores.indptr))
    if wanted_C is not None:
        keep_Z &= wanted_C[scores.indices]
    kept_before = np.concatenate([[0], np.cumsum(keep_Z)])[scores.indptr]
    length_R = np.diff(kept_before)[chosen_R - start]
    activation_Z = scores.activation[keep_Z]
    projection_Z = scores.projections[question.objective][keep_Z]
    influence_Z = activation_Z * projection_Z
    if tokens.scale_M is not None:
        scale_Z = tokens.scale_M[np.repeat(tokens.document_N[chosen_R], length_R)]
        projection_Z, influence_Z = projection_Z * scale_Z, influence_Z * scale_Z
    return Run(
        tokens=tokens,
        token_R=chosen_R,
        length_R=length_R,
        latent_Z=scores.indices[keep_Z],
        activation_Z=activation_Z,
        projection_Z=projection_Z,
        influence_Z=influence_Z,
    )


def compact(value_Z: Array) -> tuple[Array, Array]:
    """Return the values that occur, ascending, and for each entry the place of its value among them.

    For numbers far smaller than their count times ten, where it is faster than sorting.

    >>> compact(np.array([7, 2, 7]))
    (array([2, 7]), array([1, 0, 1], dtype=int32))
    """
    seen = np.zeros(int(value_Z.max(initial=-1)) + 1, bool)
    seen[value_Z] = True
    used = np.flatnonzero(seen)
    place = np.cumsum(seen, dtype=np.int32) - np.int32(1)
    return used, place[value_Z]


def first_documents(store: ScoreStore) -> dict[int, int]:
    """Return, by segment, the number of documents of the committed segments before it."""
    before = accumulate((segment.num_documents for segment in store.segments), initial=0)
    return {segment.index: count for segment, count in zip(store.segments, before, strict=False)}
