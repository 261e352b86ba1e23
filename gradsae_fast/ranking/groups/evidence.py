"""What a comparison of groups rests on: the moments of each group, and the samples of the documents while they fit.

Segments are read once. Moments take 24 bytes a group and latent. Samples are kept, 12 bytes for each pair of a document
and a latent active in it, up to `MAX_PAIRS`: 0.5 GB, which a corpus of 10^8 non-zeros stays below. Samples of larger
groups are read again for the latents that need them: for areas under the curve of the latents shown, once; for those
of all latents, and for permutation tests, once for every `_PAIRS_READ` pairs. A block of latents takes some 60 bytes a
pair while its samples are brought into order: at most 0.3 GB.

Letters: S documents with a counted token, in the order of the corpus; G groups, C latents.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from gradsae_fast.ranking.groups.moments import Moments
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.samples import sample_parts
from gradsae_fast.ranking.selection import Selection
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

MAX_PAIRS = 40_000_000
_PAIRS_OF_BLOCK = 1 << 20
_PAIRS_READ = 1 << 22

Group = Mapping[int, Array]  # number of a segment -> ascending slots of the members in it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kept:
    """The P samples of one segment as they are read, by document."""

    matrix: scipy.sparse.csr_array
    first_row: int  # of all S documents

    def runs_of(self, column_C: Array) -> tuple[Array, Array, Array]:
        """Return samples, rows and columns of the latents that have a column, not -1."""
        column_P = column_C[self.matrix.indices]
        wanted_P = np.flatnonzero(column_P >= 0)
        row_P = np.searchsorted(self.matrix.indptr, wanted_P, side="right") - 1 + self.first_row
        return self.matrix.data[wanted_P], row_P.astype(np.int32), column_P[wanted_P]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ByLatent:
    """The same, sorted by latent: what many blocks of latents are taken from; D latents are active there."""

    latent_D: Array  # ascending
    edges_D: Array  # [D + 1], of the latents' runs
    row_P: Array  # int32, of all S documents
    sample_P: Array

    @classmethod
    def of(cls, kept: _Kept) -> "_ByLatent":
        """Sort what was kept."""
        sorted_SC = kept.matrix.tocsc()
        latent_D = np.flatnonzero(np.diff(sorted_SC.indptr))
        edges_D = np.append(sorted_SC.indptr[latent_D], sorted_SC.nnz)
        row_P = sorted_SC.indices + np.int32(kept.first_row)
        return cls(latent_D=latent_D, edges_D=edges_D, row_P=row_P, sample_P=sorted_SC.data)

    def runs_of(self, column_C: Array) -> tuple[Array, Array, Array]:
        """Return samples, rows and columns of the latents that have a column, not -1."""
        column_D = column_C[self.latent_D]
        wanted_D = np.flatnonzero(column_D >= 0)
        length_D = np.diff(self.edges_D)[wanted_D]
        before_D = np.cumsum(length_D) - length_D
        take_P = np.arange(length_D.sum()) + np.repeat(self.edges_D[wanted_D] - before_D, length_D)
        return self.sample_P[take_P], self.row_P[take_P], np.repeat(column_D[wanted_D], length_D)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What the documents of some groups say; made by `gather`."""

    moments: tuple[Moments, ...]  # of each group
    member_GS: Array  # bool
    store: ScoreStore
    selection: Selection  # documents of all groups
    question: Question
    kept: tuple[_Kept, ...] | None  # of each segment; None: too many, read them again

    def blocks(self, latents: Array) -> Iterator[tuple[Array, scipy.sparse.csc_array]]:
        """Yield the samples of some latents, ascending, in blocks that fit into memory: (latents, [S, latents])."""
        if not len(latents):
            return
        num_pairs = np.cumsum(np.sum([group.num_active[latents] for group in self.moments], axis=0))
        largest = _PAIRS_OF_BLOCK if self.kept is not None else _PAIRS_READ
        blocks = np.split(latents, np.flatnonzero(np.diff(num_pairs // largest)) + 1)
        parts: Sequence[_Kept | _ByLatent] | None = self.kept
        if parts is not None and len(blocks) > 1:
            parts = [_ByLatent.of(kept) for kept in self.kept or ()]
        for block in blocks:
            yield block, self._columns(block, parts)

    def _columns(self, latents: Array, parts: Sequence[_Kept | _ByLatent] | None) -> scipy.sparse.csc_array:
        """Put together the samples of a block of latents."""
        column_C = np.full(self.question.num_latents, -1, np.int32)
        column_C[latents] = np.arange(len(latents))
        runs = [part.runs_of(column_C) for part in parts or self._read(latents)]
        sample, row, column = (np.concatenate(arrays) for arrays in zip(*runs, strict=True))
        del runs
        shape = (self.member_GS.shape[1], len(latents))
        return scipy.sparse.coo_array((sample, (row, column)), shape=shape).tocsc()

    def _read(self, latents: Array) -> Iterator[_Kept]:
        first_row = 0
        for part in sample_parts(self.store, self.selection, self.question, latents=latents):
            yield _Kept(matrix=part.matrix, first_row=first_row)
            first_row += len(part.num_tokens_S)


def gather(store: ScoreStore, groups: Sequence[Group], question: Question) -> Evidence:
    """Measure groups of documents, which may overlap."""
    moments = tuple(Moments(question.num_latents) for _ in groups)
    members, kept = list[Array](), list[_Kept]()
    num_documents, num_pairs = 0, 0
    selection = _union(store, groups)
    for part in sample_parts(store, selection, question):
        ((segment, slots),) = part.selection
        member_GS = np.array([np.isin(slots, group.get(segment.index, ())) for group in groups])
        for group, member_S in zip(moments, member_GS, strict=True):
            group.add(part.matrix[member_S], part.num_tokens_S[member_S])
        members.append(member_GS)
        num_pairs += part.matrix.nnz
        if num_pairs <= MAX_PAIRS:
            kept.append(_Kept(matrix=part.matrix, first_row=num_documents))
        else:
            kept.clear()
        num_documents += len(slots)
    return Evidence(
        moments=moments,
        member_GS=np.concatenate([np.zeros((len(groups), 0), bool), *members], axis=1),
        store=store,
        selection=selection,
        question=question,
        kept=tuple(kept) if num_pairs <= MAX_PAIRS else None,
    )


def members_of(store: ScoreStore, member_M: Array) -> Group:
    """Return the group of the documents, of all M of a store, that are marked."""
    borders = np.cumsum([segment.num_documents for segment in store.segments])[:-1]
    parts = zip(store.segments, np.split(member_M, borders), strict=True)
    return {segment.index: np.flatnonzero(part) for segment, part in parts}


def _union(store: ScoreStore, groups: Sequence[Group]) -> Selection:
    nothing = np.zeros(0, np.int64)
    parts = []
    for segment in store.segments:
        slots = np.unique(np.concatenate([nothing, *(group.get(segment.index, nothing) for group in groups)]))
        if len(slots):
            parts.append((segment, slots))
    return Selection(parts=tuple(parts))
