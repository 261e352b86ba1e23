"""How far a ranking of latents depends on which documents happen to be in the corpus: a bootstrap over documents.

Documents are what is resampled, as tokens of one document are not independent of each other: of M chosen documents
with a counted token, M are drawn with replacement, many times. A resample in which document m was drawn w_m times gives
each latent the score that `rank_latents` calls mean_score, a ratio of two sums:

    score = Σ_m w_m · (the latent's sum over document m) / Σ_m w_m · (counted tokens of document m)

Everything that is said of a latent is over its scores in all resamples; the interval is the percentile interval (Efron
1979). Its rank in a resample is 1 + the number of latents with a larger score among those that fire in the chosen
documents. The interval says what other documents of the same kind could have given, not whether the scores are right.

Resamples go through the store in blocks: memory is 8 bytes for each of 2^25 (latent, resample) pairs (512 resamples at
65,536 latents), 0.1 GB of draws and one segment's sums, whatever the length of the corpus, and some 32 bytes for each
listed latent and resample; time is one reading of the segments' sums per block, and a multiplication for each resample
and (document, latent) pair.

Letters: M documents, D documents of a slice, C latents, K ranked ones, R resamples of a block, B all resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import scipy.sparse

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table
from gradsae_fast.ranking.latents import LatentTotals
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.ranking.samples import finite_or_nan
from gradsae_fast.ranking.selection import Selection, keys_of, select
from gradsae_fast.ranking.tally import tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

MIN_RESAMPLES = 100
MIN_DOCUMENTS = 3
_BLOCK_ELEMENTS = 1 << 25  # of the sums of a block of resamples
_BLOCK_RESAMPLES = 1 << 10
_SLICE_DOCUMENTS = 1 << 12
_SLICE_LATENTS = 1 << 12
_INTERVAL = (0.025, 0.975)


def rank_stability(
    store: ScoreStore,
    *,
    by: str = "influence",
    k: int = 20,
    resamples: int = 1000,
    seed: int = 0,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    site: str | None = None,
    objective: str | None = None,
    smallest: bool = False,
    include_special: bool | None = None,
    exact_dense: bool = False,
    polarity: str | None = None,
) -> pa.Table:
    """Say of the first k latents of `rank_latents` how stable score and rank are when documents are resampled.

    Args:
        store, by, site, objective, include_special, exact_dense, polarity: see `question.resolve`.
        k: latents to list, and what "top k" means.
        resamples, seed: 100 or more; equal seeds give equal answers, however the documents are cut into segments.
        document, where, smallest: which documents, and which end of the ranking, as in `rank_latents`.

    Returns:
        rank, latent, score (mean per counted token: `mean_score` of `rank_latents`), standard_error, low, high (95 %
        percentile interval), share_in_top_k (of the resamples, rank at most k), median_rank, rank_low, rank_high (95 %
        of the resamples lie between), num_documents (in which it fires).

    Raises QueryError where `rank_latents` does, and for fewer than 3 documents with a counted token.
    """
    question = resolve(
        store,
        by=by,
        k=k,
        site=site,
        objective=objective,
        include_special=include_special,
        polarity=polarity,
        exact_dense=exact_dense,
    )
    _check(k, resamples, seed)
    selection = select(store, document=document, where=where)
    totals = _totals(store, selection, replace(question, k=None))
    ranked = totals.columns(smallest=smallest)
    draws = [Draws(seed, block, totals.num_documents, size) for block, size in _blocks(question.num_latents, resamples)]
    return build_table(
        _columns(ranked, *_resample(store, selection, question, draws, ranked["latent"], smallest=smallest), k),
        ranking="stability",
        store=store,
        question=question,
        per_token=True,
        resamples=resamples,
        seed=seed,
        num_documents=totals.num_documents,
        num_tokens=totals.num_tokens,
        document=keys_of(document),
        where=where,
        smallest=smallest,
    )


def _totals(store: ScoreStore, selection: Selection, question: Question) -> LatentTotals:
    totals = LatentTotals(question)
    for segment, slots in selection:
        totals.add(tally(store, segment, slots, question))
    if totals.num_documents < MIN_DOCUMENTS:
        raise QueryError(
            f"{totals.num_documents} of the chosen documents have a counted token; expected {MIN_DOCUMENTS} or more: "
            "documents are what is resampled; choose more of them"
        )
    return totals


class Draws:
    """Which documents the R resamples of a block hold: M of M, drawn with replacement; counts, document by document.

    Documents come in chunks of fixed size, counted from the first: how many draws of a resample fall into a chunk is
    binomial given those before it, and inside it every document is as likely. So no array is as long as the corpus,
    and the counts do not depend on how the documents are cut into segments.
    """

    def __init__(self, seed: int, block: int, num_documents: int, num_resamples: int) -> None:
        self.num_resamples = num_resamples
        self._random = np.random.default_rng((seed, block))
        self._documents_left = num_documents
        self._draws_left_R = np.full(num_resamples, num_documents)
        self._chunk_DR = np.zeros((0, num_resamples), np.int64)

    def take(self, at_most: int) -> Array:
        """Return the counts int64 [D, R] of the next D documents; D is 1 to `at_most`."""
        if len(self._chunk_DR) == 0:
            self._chunk_DR = self._draw_chunk()
        taken_DR, self._chunk_DR = self._chunk_DR[:at_most], self._chunk_DR[at_most:]
        return taken_DR

    def _draw_chunk(self) -> Array:
        size, num_resamples = min(_SLICE_DOCUMENTS, self._documents_left), self.num_resamples
        draws_R = self._random.binomial(self._draws_left_R, size / self._documents_left)
        resample = np.repeat(np.arange(num_resamples), draws_R)
        place = self._random.integers(0, size, len(resample)) * num_resamples + resample
        self._draws_left_R = self._draws_left_R - draws_R
        self._documents_left -= size
        return np.bincount(place, minlength=size * num_resamples).reshape(size, num_resamples)


def _resample(
    store: ScoreStore,
    selection: Selection,
    question: Question,
    blocks: Sequence[Draws],
    ranked_C: Array,
    *,
    smallest: bool,
) -> tuple[Array, Array]:
    """Return the scores and ranks of the first k of the ranked latents, float64 and int64 [K, B]."""
    top_K, scores, ranks = ranked_C[: question.k], list[Array](), list[Array]()
    for draws in blocks:
        score_CR = _scores(store, selection, question, draws)
        scores.append(score_CR[top_K])
        if smallest:
            np.negative(score_CR, out=score_CR)
        ranks.append(_ranks(score_CR, ranked_C, top_K))
    return np.concatenate(scores, axis=1), np.concatenate(ranks, axis=1)


def _blocks(num_latents: int, resamples: int) -> Iterator[tuple[int, int]]:
    """Yield the number and size of each block of resamples; the sizes depend on nothing but the two arguments."""
    largest = max(1, min(_BLOCK_RESAMPLES, _BLOCK_ELEMENTS // num_latents))
    for number, first in enumerate(range(0, resamples, largest)):
        yield number, min(largest, resamples - first)


def _scores(store: ScoreStore, selection: Selection, question: Question, draws: Draws) -> Array:
    """Return every latent's score in each resample of a block, float64 [C, R]."""
    sum_CR = np.zeros((question.num_latents, draws.num_resamples))
    num_tokens_R = np.zeros(draws.num_resamples)
    for segment, slots in selection:
        num_tokens_M, sum_CM = _document_sums(store, segment, slots, question)
        first = 0
        while first < len(num_tokens_M):
            count_DR = draws.take(len(num_tokens_M) - first)
            last = first + len(count_DR)
            _add_product(sum_CR, sum_CM[:, first:last], count_DR.astype(np.float64))
            num_tokens_R += num_tokens_M[first:last] @ count_DR
            first = last
    sum_CR /= num_tokens_R
    return sum_CR


def _document_sums(
    store: ScoreStore, segment: StoredSegment, slots: Array, question: Question
) -> tuple[Array, scipy.sparse.csr_array]:
    """Return the lengths int64 [M] of a segment's chosen documents that have a counted token, and the sums [C, M]."""
    part = tally(store, segment, slots, question, by=question.by)
    counted_S = part.num_tokens_S > 0
    row_S, num_tokens_M = np.cumsum(counted_S) - 1, part.num_tokens_S[counted_S]
    places = (part.latent_P, row_S[part.row_P])
    shape = (question.num_latents, len(num_tokens_M))
    return num_tokens_M, scipy.sparse.csr_array((finite_or_nan(part.amount_P(question.by)), places), shape=shape)


def _add_product(sum_CR: Array, sum_CD: scipy.sparse.csr_array, count_DR: Array) -> None:
    """Add sum_CD @ count_DR, a few latents at a time: the product as a whole would be as large as the sums."""
    for first in range(0, len(sum_CR), _SLICE_LATENTS):
        sum_CR[first : first + _SLICE_LATENTS] += sum_CD[first : first + _SLICE_LATENTS] @ count_DR


def _ranks(score_CR: Array, ranked_C: Array, top_K: Array) -> Array:
    """Return 1 + the number of ranked latents with a larger score, int64 [K, R]; NaN counts as the smallest score."""
    rank_KR = np.zeros((len(top_K), score_CR.shape[1]), np.int64)
    for resample in range(score_CR.shape[1]):
        score_C = np.where(np.isnan(score_CR[:, resample]), -np.inf, score_CR[:, resample])
        ascending_C = np.sort(score_C[ranked_C])
        rank_KR[:, resample] = 1 + len(ascending_C) - np.searchsorted(ascending_C, score_C[top_K], side="right")
    return rank_KR


def _columns(ranked: dict[str, Array], score_KB: Array, rank_KB: Array, k: int) -> dict[str, Array]:
    low_K, high_K = np.quantile(score_KB, _INTERVAL, axis=1)
    rank_low_K, median_rank_K, rank_high_K = np.quantile(
        rank_KB, (_INTERVAL[0], 0.5, _INTERVAL[1]), axis=1, method="inverted_cdf"
    )
    return {
        "latent": ranked["latent"][:k],
        "score": ranked["mean_score"][:k],
        "standard_error": score_KB.std(axis=1, ddof=1),
        "low": low_K,
        "high": high_K,
        "share_in_top_k": (rank_KB <= k).mean(axis=1),
        "median_rank": median_rank_K,
        "rank_low": rank_low_K,
        "rank_high": rank_high_K,
        "num_documents": ranked["num_documents"][:k],
    }


def _check(k: int | None, resamples: int, seed: int) -> None:
    if k is None:
        raise QueryError("got k = None; expected a number: the share of resamples in the top k needs one")
    if resamples < MIN_RESAMPLES:
        raise QueryError(
            f"got resamples = {resamples}; expected {MIN_RESAMPLES} or more: the interval's ends need them"
        )
    if seed < 0:
        raise QueryError(f"got seed = {seed}; expected 0 or more")
