"""For each of a store's first latents, the latent of another store whose scores go along with its own most closely.

Letters: K listed latents of one store, C latents of the other, N rows (documents or tokens) of a part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.stats

from gradsae_fast.ranking.compare.correlation import Correlation
from gradsae_fast.ranking.compare.matching import Matching, Rows
from gradsae_fast.ranking.compare.paired import Means
from gradsae_fast.records import Array

_BLOCK_ELEMENTS = 1 << 23  # pairs of latents whose products are summed at a time
_ROUNDING = 1e-9  # of an r


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counterparts:
    """The two columns that correlate most with each of K columns; latent -1 and r NaN where there is none."""

    best_K: Array  # int64
    best_r_K: Array  # float64
    second_K: Array
    second_r_K: Array
    num_rows: int  # that they were correlated over


def compare_counterparts(matching: Matching, level: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of A's first latents and their counterparts, and what is said of all of them.

    The columns are those of `compare_stores`.
    """
    rows = matching.token_rows if level == "tokens" else matching.document_rows
    a, b = Means(matching.a.question.num_latents), Means(matching.b.question.num_latents)
    for a_DC, b_DC in matching.document_rows():
        a.add(a_DC)
        b.add(b_DC)
    latent_K = a.in_order()[: matching.a.question.k]
    found = find_counterparts(rows, latent_K, len(b.total))
    there = found.best_K >= 0
    matched, place = np.unique(found.best_K[there], return_inverse=True)
    mutual_K = np.zeros(len(latent_K), bool)
    back_r = find_counterparts(_swapped(rows), matched, len(a.total)).best_r_K[place]
    mutual_K[there] = found.best_r_K[there] >= back_r - _ROUNDING
    score_b_K = np.where(there, b.mean[found.best_K], np.nan)
    columns = {
        "latent": latent_K,
        "match": pa.array(found.best_K, mask=~there),
        "correlation": found.best_r_K,
        "runner_up": pa.array(found.second_K, mask=found.second_K < 0),
        "runner_up_correlation": found.second_r_K,
        "mutual": mutual_K,
        "score_a": a.mean[latent_K],
        "score_b": score_b_K,
        "rank_b": b.ranks(found.best_K),
    }
    summary = {
        "chance_correlation": chance_correlation(found.num_rows, int(np.count_nonzero(b.num_active))),
        "mean_correlation": float(found.best_r_K[there].mean()) if there.any() else None,
        "num_mutual": int(np.count_nonzero(mutual_K)),
    }
    return columns, summary


def find_counterparts(rows: Callable[[], Iterator[Rows]], latent_K: Array, num_latents: int) -> Counterparts:
    """Correlate some columns of the first matrices with all columns of the second; ties go to the smaller number.

    Args:
        rows: begins a reading of all parts, once for every block of latents.
        latent_K: numbers of the columns of the first matrices.
        num_latents: C, columns of the second.
    """
    size, num_rows = max(1, _BLOCK_ELEMENTS // num_latents), 0
    blocks = []
    for first in range(0, max(len(latent_K), 1), size):
        chosen = latent_K[first : first + size]
        correlation = Correlation(len(chosen), num_latents)
        for x, y in rows():
            correlation.add(x[:, chosen], y)
        num_rows = correlation.num_rows
        blocks.append(_two_largest(correlation.pearson()))
    best, best_r, second, second_r = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    return Counterparts(best_K=best, best_r_K=best_r, second_K=second, second_r_K=second_r, num_rows=num_rows)


def chance_correlation(num_rows: int, num_latents: int) -> float | None:
    """Return the r that one of so many unrelated latents is expected to exceed, were scores normal.

    None for fewer than 3 rows, of which r says nothing, or 2 latents: any r exceeds what one latent is expected to.

    >>> round(chance_correlation(6, 4096), 3), round(chance_correlation(10_000, 4096), 3)
    (0.982, 0.035)
    """
    if num_rows < 3 or num_latents < 2:
        return None
    t = scipy.stats.t.isf(1 / num_latents, num_rows - 2)
    return float(t / np.sqrt(num_rows - 2 + t**2))


def _swapped(rows: Callable[[], Iterator[Rows]]) -> Callable[[], Iterator[Rows]]:
    return lambda: ((y, x) for x, y in rows())


def _two_largest(r_KC: Array) -> tuple[Array, Array, Array, Array]:
    ranked_KC, every_K = np.where(np.isnan(r_KC), -np.inf, r_KC), np.arange(len(r_KC))
    found: list[Array] = []
    for _ in range(2):
        column_K = ranked_KC.argmax(1)
        r_K = ranked_KC[every_K, column_K]
        found += [np.where(r_K == -np.inf, -1, column_K), np.where(r_K == -np.inf, np.nan, r_K)]
        ranked_KC[every_K, column_K] = -np.inf
    return found[0], found[1], found[2], found[3]
