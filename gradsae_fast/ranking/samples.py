"""One number for each document and latent: what statistics over documents are made of.

A document's sample of a latent is the mean of the question's score over the document's counted tokens: the sum that
document rankings have, divided by the document's length, so that a long document weighs as much as a short one.
Documents without a counted token have no sample and no row. A sum that is infinite says as little as NaN does: its
sample is NaN.

Memory: 12 bytes (a float64 and an int32) for each pair of a document and a latent that is active in it, and as much
again while the parts of the segments are joined. A corpus of 10^8 non-zeros has some 3·10^7 pairs.

Letters: S chosen documents with a counted token, C latents, P pairs of such a document and a latent active in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.selection import Selection
from gradsae_fast.ranking.tally import Tally, stored_name, tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.places.ahead import announced


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """The samples of some documents, in the order of the corpus."""

    matrix: scipy.sparse.csr_array  # float64 [S, C], P entries; one that is 0 is kept: there the latent is active
    num_tokens_S: Array  # int64, counted tokens, at least 1
    selection: Selection  # the documents that have a row

    def keys(self) -> list[str]:
        """Return the ids of the S documents (reads them from the store)."""
        keys = [(segment.document_keys(), slots) for segment, slots in self.selection]
        return [names[slot] for names, slots in keys for slot in slots]


def samples(store: ScoreStore, selection: Selection, question: Question, *, latents: Array | None = None) -> Samples:
    """Return the samples of the chosen documents for all latents, or for some.

    Args:
        store: an open store.
        selection: the documents.
        question: which score (`by`), site and objective; whether exact effects take the place of influences.
        latents: ascending numbers of the wanted latents; the entries of all others are left out, the columns stay.
    """
    parts = list(sample_parts(store, selection, question, latents=latents))
    return join_samples(parts, question.num_latents)


def sample_parts(
    store: ScoreStore, selection: Selection, question: Question, *, latents: Array | None = None
) -> Iterator[Samples]:
    """Yield the samples segment by segment; see `samples`."""
    wanted_C = None if latents is None else np.isin(np.arange(question.num_latents), latents)
    names = [stored_name(question.by, question.objective)]
    for segment, slots in announced(selection, lambda part: part[0].expect_sums(question.site, names)):
        part = tally(store, segment, slots, question, by=question.by)
        counted = part.num_tokens_S > 0
        yield Samples(
            matrix=_matrix(part, counted, question, wanted_C),
            num_tokens_S=part.num_tokens_S[counted],
            selection=Selection(parts=((segment, slots[counted]),)),
        )


def join_samples(parts: list[Samples], num_latents: int) -> Samples:
    """Put the samples of several segments one below the other."""
    if not parts:
        nothing = scipy.sparse.csr_array((0, num_latents))
        return Samples(matrix=nothing, num_tokens_S=np.zeros(0, np.int64), selection=Selection(parts=()))
    return Samples(
        matrix=scipy.sparse.vstack([part.matrix for part in parts], format="csr"),
        num_tokens_S=np.concatenate([part.num_tokens_S for part in parts]),
        selection=Selection(parts=tuple(found for part in parts for found in part.selection if len(found[1]))),
    )


def finite_or_nan(amount_P: Array) -> Array:
    """Return amounts with NaN in place of infinities, of which no mean or spread could be had."""
    return np.where(np.isfinite(amount_P), amount_P, np.nan)


def _matrix(part: Tally, counted: Array, question: Question, wanted_C: Array | None) -> scipy.sparse.csr_array:
    """Make the matrix of one segment; a tally's pairs come in the order of its documents, then of the latents."""
    row_P, latent_P, amount_P = part.row_P, part.latent_P, part.amount_P(question.by)
    if wanted_C is not None:
        keep_P = wanted_C[latent_P]
        row_P, latent_P, amount_P = row_P[keep_P], latent_P[keep_P], amount_P[keep_P]
    length_S = np.bincount(row_P, minlength=len(counted))[counted]
    edges = np.concatenate([[0], np.cumsum(length_S)])
    sample_P = finite_or_nan(amount_P) / part.num_tokens_S[row_P]
    shape = (len(length_S), question.num_latents)
    return scipy.sparse.csr_array((sample_P, latent_P.astype(np.int32), edges), shape=shape)
