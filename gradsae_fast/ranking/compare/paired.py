"""Means over matched documents, and tests of their differences where both stores have the same latents.

Letters: D documents of a part, C latents.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
import scipy.stats

from gradsae_fast.ranking.answer import first_k
from gradsae_fast.ranking.compare.matching import Matching
from gradsae_fast.ranking.groups.moments import false_discovery_rate
from gradsae_fast.records import Array

_NO_SPREAD = 1e-7  # the stores' sums are float32: a smaller spread, as a share of the means, is rounding


class Means:
    """Sums of each latent's samples over the documents seen so far, in float64."""

    def __init__(self, num_latents: int) -> None:
        self.num_documents = 0
        self.total = np.zeros(num_latents)
        self.squares = np.zeros(num_latents)
        self.num_active = np.zeros(num_latents, np.int64)  # documents in which the latent fires

    def add(self, sample_DC: scipy.sparse.csr_array) -> None:
        """Add D documents."""
        self.num_documents += sample_DC.shape[0]
        self.total += sample_DC.sum(0)
        self.squares += sample_DC.power(2).sum(0)
        self.num_active += np.bincount(sample_DC.indices, minlength=len(self.total))

    @property
    def mean(self) -> Array:
        """The mean over documents, float64 [C]."""
        return self.total / self.num_documents

    def spread(self) -> Array:
        """Return the standard deviation over documents (n - 1), float64 [C]."""
        squares = np.maximum(self.squares - self.num_documents * self.mean**2, 0)
        return np.sqrt(squares / (self.num_documents - 1))

    def in_order(self) -> Array:
        """Return the latents that fire, largest mean first, ties by number."""
        active = np.flatnonzero(self.num_active)
        return active[first_k(self.mean[active], active, None)]

    def ranks(self, latents: Array) -> pa.Array:
        """Return the ranks of some latents among those that fire, from 1; null for one that never does, and for -1."""
        order, rank_C = self.in_order(), np.zeros(len(self.total), np.int64)
        rank_C[order] = np.arange(1, len(order) + 1)
        rank = np.where(latents >= 0, rank_C[latents], 0)
        return pa.array(rank, mask=rank == 0)


class PairedMeans:
    """Sums over documents of both stores' samples, their differences and their products."""

    def __init__(self, num_latents: int) -> None:
        self.a, self.b, self.difference = Means(num_latents), Means(num_latents), Means(num_latents)
        self._products = np.zeros(num_latents)

    def add(self, a_DC: scipy.sparse.csr_array, b_DC: scipy.sparse.csr_array) -> None:
        """Add D documents that both stores have."""
        self.a.add(a_DC)
        self.b.add(b_DC)
        self.difference.add((a_DC - b_DC).tocsr())
        self._products += a_DC.multiply(b_DC).sum(0)

    def t_test(self) -> tuple[Array, Array]:
        """Return t of the paired differences and its two-sided p, float64 [C]; NaN where they do not spread."""
        spread, count = self.difference.spread(), self.difference.num_documents
        usable = spread > _NO_SPREAD * np.maximum(abs(self.a.mean), abs(self.b.mean))
        error = spread / np.sqrt(count)
        t = np.divide(self.difference.mean, error, out=np.full(len(spread), np.nan), where=usable)
        return t, 2 * scipy.stats.t.sf(abs(t), count - 1)

    def correlation(self) -> Array:
        """Return Pearson's r over documents, float64 [C]; NaN where one of the two does not spread."""
        count, spread_a, spread_b = self.a.num_documents, self.a.spread(), self.b.spread()
        usable = (spread_a > _NO_SPREAD * abs(self.a.mean)) & (spread_b > _NO_SPREAD * abs(self.b.mean))
        covariance = (self._products - count * self.a.mean * self.b.mean) / (count - 1)
        r = np.divide(covariance, spread_a * spread_b, out=np.full(len(covariance), np.nan), where=usable)
        return np.clip(r, -1, 1)


def compare_paired(matching: Matching, k: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of the k latents that differ most, and what is said of all; see `compare_stores`."""
    paired = PairedMeans(matching.a.question.num_latents)
    for a_DC, b_DC in matching.document_rows():
        paired.add(a_DC, b_DC)
    active = np.flatnonzero(paired.a.num_active + paired.b.num_active)
    difference, (t, p) = paired.a.mean - paired.b.mean, paired.t_test()
    latent = active[first_k(abs(difference[active]), active, k)]
    by_latent = {
        "difference": difference,
        "score_a": paired.a.mean,
        "score_b": paired.b.mean,
        "t": t,
        "p": p,
        "q": false_discovery_rate(p),
        "correlation": paired.correlation(),
    }
    columns = {"latent": latent} | {name: column[latent] for name, column in by_latent.items()}
    columns |= {"rank_a": paired.a.ranks(latent), "rank_b": paired.b.ranks(latent)}
    columns |= {
        "num_active_documents_a": paired.a.num_active[latent],
        "num_active_documents_b": paired.b.num_active[latent],
    }
    return columns, {"spearman": _spearman(paired.a.mean[active], paired.b.mean[active])}


def _spearman(x: Array, y: Array) -> float | None:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(scipy.stats.spearmanr(x, y).statistic)
