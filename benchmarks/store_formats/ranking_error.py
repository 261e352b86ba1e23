"""What rounding does to rankings: every document and the corpus, ranked on the exact store and on a rounded one."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import stats

from gradsae_fast.ranking import rank_latents
from gradsae_fast.store import ScoreStore

TOP, COMPARED = 20, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingError:
    """One ranking of latents by summed influence, held against the exact one."""

    document: str | None  # None: the whole corpus
    overlap: float  # share of the exact first TOP that are among the first TOP
    kendall: float  # of the exact first COMPARED, by their scores
    spearman: float
    largest_of_sum: float  # largest |s' - s| / |s| of the exact first COMPARED; a sum near zero makes it large
    largest_of_absolute: float  # largest |s' - s| / Σ|g| of all latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The worst and the middle of many rankings at one precision."""

    precision_bits: int
    num_rankings: int
    least_overlap: float
    mean_overlap: float
    least_kendall: float
    median_kendall: float
    least_spearman: float
    median_spearman: float
    largest_of_sum: float
    largest_of_absolute: float


def compare(exact: ScoreStore, rounded: ScoreStore) -> list[RankingError]:
    """The corpus's ranking, then every document's that has a counted token."""
    keys = [
        key
        for segment in exact.segments
        for key, count in zip(segment.document_keys(), segment.counted_tokens().tolist(), strict=True)
        if count
    ]
    return [_compare_one(exact, rounded, key) for key in (None, *keys)]


def _compare_one(exact: ScoreStore, rounded: ScoreStore, document: str | None) -> RankingError:
    truth, found = (rank_latents(store, document=document, k=None) for store in (exact, rounded))
    order = np.argsort(found.column("latent").to_numpy())
    place = order[np.searchsorted(found.column("latent").to_numpy()[order], truth.column("latent").to_numpy())]
    np.testing.assert_array_equal(found.column("latent").to_numpy()[place], truth.column("latent").to_numpy())
    score, other = truth.column("score").to_numpy(), found.column("score").to_numpy()[place]
    absolute = truth.column("absolute").to_numpy()
    moved = absolute > 0  # a latent that fires where the gradient is zero has no error to speak of
    first, second = score[:COMPARED], other[:COMPARED]
    return RankingError(
        document=document,
        overlap=len(_top(truth) & _top(found)) / len(_top(truth)),
        kendall=float(stats.kendalltau(first, second).statistic),
        spearman=float(stats.spearmanr(first, second).statistic),
        largest_of_sum=float(np.max(np.abs(second - first) / np.abs(first))),
        largest_of_absolute=float(np.max(np.abs(other - score)[moved] / absolute[moved])),
    )


def _top(table: pa.Table) -> set[int]:
    return set(table.column("latent").to_pylist()[:TOP])


def summarise(errors: Iterable[RankingError], precision_bits: int) -> Summary:
    """The worst and the middle."""
    rows = list(errors)
    return Summary(
        precision_bits=precision_bits,
        num_rankings=len(rows),
        least_overlap=min(row.overlap for row in rows),
        mean_overlap=statistics.mean(row.overlap for row in rows),
        least_kendall=min(row.kendall for row in rows),
        median_kendall=statistics.median(row.kendall for row in rows),
        least_spearman=min(row.spearman for row in rows),
        median_spearman=statistics.median(row.spearman for row in rows),
        largest_of_sum=max(row.largest_of_sum for row in rows),
        largest_of_absolute=max(row.largest_of_absolute for row in rows),
    )
