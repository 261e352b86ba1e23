"""The values that flow through the house, in the order in which they are made.

    Document -> TokenDocument -> Window -> Batch -> SparseScores -> SegmentScores

Letters: N scored tokens of a segment, M documents of a segment, T tokens of one document or window, B windows of a
batch, C latents of a site's SAE, Z non-zeros (active latents summed over the scored tokens).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class TokenMask(IntFlag):
    """Why a token is left out of aggregates; 0 means that it counts. Raw scores of masked tokens are kept."""

    SPECIAL = 1  # a special token of the tokenizer, or a token id that the user masked
    FIRST = 2  # first position of a window that has no BOS: an attention sink
    NORM = 4  # hidden-state norm above the sink limit at one of the sites
    NONFINITE = 8  # NaN or Inf in the hidden state or gradient; such a token has no latents


class DocumentStatus(IntFlag):
    """What became of a document."""

    SCORED = 0
    EMPTY = 1  # no token to score; it has no rows
    QUARANTINED = 2  # NaN or Inf was met in it; it has no rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One row of the corpus. `text` is what is scored; with an `answer`, `text` is the prompt before it."""

    key: str
    text: str
    source: str
    row: int
    answer: str | None = None
    contrast: tuple[str, str] | None = None  # y1, y2 of the objective `logit-diff`
    patch: str | None = None  # attribution patching: what `text` is compared with, of as many tokens
    metadata: Mapping[str, Any]  # JSON values of the other columns

    @property
    def full_text(self) -> str:
        """Prompt and answer together: what character offsets point into."""
        return self.text + (self.answer or "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenDocument:
    """A document as the model reads it: token ids (BOS first where one is used), character offsets, special tokens."""

    document: Document
    index: int  # position in the corpus
    token_ids: Array  # int32 [T]
    char_start: Array  # int32 [T], into document.full_text; 0 for added tokens
    char_end: Array  # int32 [T]
    special: Array  # bool [T]
    num_bos: int  # 1 where a BOS was put in front (it is repeated in front of every window), else 0
    answer_start: int | None = None  # first token of the answer
    contrast_ids: tuple[int, int] | None = None
    patch_ids: Array | None = None  # int32 [T], what `token_ids` are with the patch in place of the text

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """One row of a batch: `num_context` context tokens, then tokens that are scored here and nowhere else."""

    document: TokenDocument
    slot: int  # position of the document in its segment
    token_ids: Array  # int32 [T]
    num_context: int  # leading positions that another window scores (or a repeated BOS)
    first_position: int  # position in the document of the first scored token
    patch_ids: Array | None = None  # int32 [T]

    @property
    def num_scored(self) -> int:
        return len(self.token_ids) - self.num_context


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Windows of similar length, padded on the right: a causal model never lets a real token see the padding."""

    windows: tuple[Window, ...]
    token_ids_BT: Array  # int64

    @property
    def lengths(self) -> list[int]:
        return [len(window.token_ids) for window in self.windows]

    @property
    def num_scored(self) -> int:
        return sum(window.num_scored for window in self.windows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseScores:
    """Active latents of N tokens at one site (CSR); influence = activation * projection.

    A projection is ⟨gradient, effective decoder row⟩; there is one array per objective.
    """

    indptr: Array  # int64 [N+1]
    indices: Array  # integer [Z], ascending inside a row
    activation: Array  # float32 [Z]
    projections: Mapping[str, Array]  # objective -> float32 [Z]
    num_latents: int  # C


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenTable:
    """One row per scored token, documents in corpus order, positions ascending; all arrays [N]."""

    token_id: Array  # uint32
    document: Array  # uint32, position of the document in this segment
    position: Array  # uint32, position in the document
    context: Array  # uint32, tokens of left context that the model saw
    char_start: Array  # uint32
    char_end: Array  # uint32
    mask: Array  # uint8, TokenMask bits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentTable:
    """One row per document of a segment; all columns have M entries."""

    key: list[str]
    source: list[str]
    row: Array  # int64
    num_tokens: Array  # uint32, scored tokens
    status: Array  # uint8, DocumentStatus
    text: list[str]
    metadata: Mapping[str, list[Any]]  # column -> JSON values
    objectives: Mapping[
        str, Array
    ]  # objective -> float64 value of the scalar; "objective@site" where each site has its own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentScores:
    """Everything that one segment adds to the store."""

    index: int
    tokens: TokenTable
    documents: DocumentTable
    sites: Mapping[str, SparseScores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of whole documents: unit of work, of order, of commit and of resume."""

    index: int
    first_document: int
    num_documents: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusPlan:
    """The deterministic cut of a corpus into segments, and the digest of everything that it depends on."""

    digest: str
    num_documents: int
    num_tokens: int
    segments: tuple[Segment, ...]


def empty_scores(num_tokens: int, num_latents: int, objectives: tuple[str, ...]) -> SparseScores:
    """Scores of `num_tokens` tokens on which nothing is active."""
    return SparseScores(
        indptr=np.zeros(num_tokens + 1, np.int64),
        indices=np.zeros(0, np.int32),
        activation=np.zeros(0, np.float32),
        projections={name: np.zeros(0, np.float32) for name in objectives},
        num_latents=num_latents,
    )


def counted_tokens(mask_N: Array, include_special: bool) -> Array:
    """Which tokens take part in aggregates, bool [N]: masked ones only where asked, those without numbers never."""
    excluded = TokenMask.NONFINITE if include_special else ~TokenMask(0)
    return (mask_N & np.uint8(excluded)) == 0
