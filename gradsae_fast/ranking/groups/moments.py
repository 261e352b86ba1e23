"""Count, mean and spread of samples over documents, and the tests that need no more.

Letters: S documents, C latents. A document in which a latent never fires has the sample 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special

from gradsae_fast.records import Array

# The store's sums are float32: a spread below this share of the means is rounding, and a quotient by it would be noise.
_NO_SPREAD = 1e-7


class Moments:
    """Count, mean and spread of each latent's samples, merged part by part in float64 (Chan, Golub and LeVeque 1983).

    A merge adds squared distances from means, never large sums that cancel. NaN goes into all that it meets.
    """

    def __init__(self, num_latents: int) -> None:
        self.num_documents = 0
        self.num_tokens = 0
        self.num_active = np.zeros(num_latents, np.int64)
        self.mean = np.zeros(num_latents)
        self.squares = np.zeros(num_latents)  # sum of squared distances from the mean

    def add(self, matrix_SC: scipy.sparse.csr_array, num_tokens_S: Array) -> None:
        """Add documents: their samples, of which absent ones are 0, and their lengths."""
        num_new, num_latents = matrix_SC.shape
        if num_new == 0:
            return
        new = Moments(num_latents)
        new.num_documents, new.num_tokens = num_new, int(num_tokens_S.sum())
        new.num_active = np.bincount(matrix_SC.indices, minlength=num_latents)
        new.mean = np.bincount(matrix_SC.indices, matrix_SC.data, num_latents) / num_new
        distance_P = matrix_SC.data - new.mean[matrix_SC.indices]
        silent = (num_new - new.num_active) * new.mean**2  # documents in which the latent never fires
        new.squares = np.bincount(matrix_SC.indices, distance_P**2, num_latents) + silent
        self.merge(new)

    def merge(self, other: "Moments") -> None:
        """Add what another one has seen."""
        if other.num_documents == 0:
            return
        total = self.num_documents + other.num_documents
        step = other.mean - self.mean
        self.squares += other.squares + step**2 * (self.num_documents * other.num_documents / total)
        self.mean += step * (other.num_documents / total)
        self.num_active += other.num_active
        self.num_documents = total
        self.num_tokens += other.num_tokens

    @property
    def variance(self) -> Array:
        """Unbiased variance [C]; of two documents or more."""
        return self.squares / (self.num_documents - 1)

    @property
    def deviation(self) -> Array:
        """Standard deviation [C], of two documents or more; 0 where it is only rounding."""
        found: Array = np.sqrt(self.variance)
        return np.where(found <= _NO_SPREAD * abs(self.mean), 0, found)


def merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of several groups (one or more, which do not overlap) taken together."""
    whole = Moments(len(parts[0].mean))
    for part in parts:
        whole.merge(part)
    return whole


def effect_size(a: Moments, b: Moments) -> Array:
    """Return Cohen's d [C]: difference of means over the pooled standard deviation; NaN without a spread.

    It is not corrected for small groups: Hedges' factor is the same for all latents, and changes no order.
    """
    if min(a.num_documents, b.num_documents) < 2:
        return np.full(len(a.mean), np.nan)
    return _quotient(a, b, np.sqrt((a.squares + b.squares) / (a.num_documents + b.num_documents - 2)))


def welch_test(a: Moments, b: Moments) -> tuple[Array, Array]:
    """Return Welch's t [C] and its two-sided p [C] with the degrees of freedom of Welch and Satterthwaite.

    Both are NaN where a group has one document, or no document differs from its group by more than rounding.
    """
    if min(a.num_documents, b.num_documents) < 2:
        return np.full(len(a.mean), np.nan), np.full(len(a.mean), np.nan)
    error_a, error_b = a.variance / a.num_documents, b.variance / b.num_documents
    t = _quotient(a, b, np.sqrt(error_a + error_b))
    usable = ~np.isnan(t)
    share = np.divide(error_a, error_a + error_b, out=np.full(len(t), np.nan), where=usable)
    freedom = 1 / (share**2 / (a.num_documents - 1) + (1 - share) ** 2 / (b.num_documents - 1))
    return t, 2 * scipy.special.stdtr(freedom, -abs(t))


def false_discovery_rate(p: Array) -> Array:
    """Return q, the p values corrected by Benjamini and Hochberg (1995) for their number; NaN is no test and stays NaN.

    Among the latents with q up to x, a share of about x is expected to be there by chance. The tests hold it to
    `scipy.stats.false_discovery_control`, which takes half a second to import: as long as a contrast of a large store.
    """
    q = np.full(p.shape, np.nan)
    tested = p[~np.isnan(p)]
    falling = np.argsort(-tested)
    scaled = tested[falling] * len(tested) / np.arange(len(tested), 0, -1)
    corrected = np.empty(len(tested))
    corrected[falling] = np.minimum.accumulate(scaled)
    q[~np.isnan(p)] = np.minimum(corrected, 1)
    return q


def _quotient(a: Moments, b: Moments, divisor: Any) -> Array:
    """Divide the difference of means; NaN where documents differ from their group by rounding only."""
    spread = np.sqrt((a.squares + b.squares) / (a.num_documents + b.num_documents))
    usable = spread > _NO_SPREAD * np.maximum(abs(a.mean), abs(b.mean))
    return np.divide(a.mean - b.mean, divisor, out=np.full(len(spread), np.nan), where=usable)
