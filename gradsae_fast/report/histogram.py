"""Histograms of L latents at once, in one pass and without knowing the range before.

Each latent has B bins on either side of zero over the range (-2^e, 2^e), where 2^e is the smallest power of two above
its largest absolute value so far. A larger value doubles the range, which merges bins in pairs: the counts at the end
do not depend on the order in which values came. Z values.
"""

from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array

BINS = 64
SHOWN = 48
_ZERO = -1000  # exponent of a latent that was only ever exactly zero; others have larger ones


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Counts of one latent, from its first to its last occupied bin; a bin holds low <= value < high."""

    edges: Array  # float64 [K+1], ascending; zero is one of them or outside
    counts: Array  # int64 [K]


class Histograms:
    """Counts of values of L latents."""

    def __init__(self, num_latents: int) -> None:
        self._counts = np.zeros((num_latents, 2 * BINS), np.int64)
        self._exponent = np.full(num_latents, _ZERO)

    def add(self, row_Z: Array, value_Z: Array) -> None:
        """Count finite values, each for the latent of its row."""
        _, needed_Z = np.frexp(value_Z)
        needed = np.full(len(self._exponent), _ZERO)
        np.maximum.at(needed, row_Z, np.where(value_Z == 0, _ZERO, np.maximum(needed_Z, _ZERO + 1)))
        self._widen(needed)
        bin_Z = np.floor(np.ldexp(value_Z * BINS, -self._exponent[row_Z])).astype(np.int64)
        bin_Z[value_Z < 0] = np.minimum(bin_Z[value_Z < 0], -1)  # also where the quotient underflows to zero
        np.add.at(self._counts, (row_Z, bin_Z + BINS), 1)

    def of(self, row: int) -> Histogram | None:
        """Return a latent's histogram in at most `SHOWN` bins; None where it has no value."""
        occupied = np.flatnonzero(self._counts[row])
        if not len(occupied):
            return None
        bins, counts, width = occupied - BINS, self._counts[row][occupied], 1
        while bins[-1] - bins[0] >= SHOWN:
            bins, width = bins >> 1, width * 2
        merged = np.bincount(bins - bins[0], counts).astype(np.int64)
        exponent = 0 if self._exponent[row] == _ZERO else int(self._exponent[row])
        edges = np.ldexp((bins[0] + np.arange(len(merged) + 1)) * width / BINS, exponent)
        return Histogram(edges=edges, counts=merged)

    def _widen(self, needed: Array) -> None:
        fresh = self._exponent == _ZERO  # whatever it has are zeros, which stay in the bin above zero
        self._exponent[fresh] = needed[fresh]
        while (grow := np.flatnonzero(needed > self._exponent)).size:
            pairs = self._counts[grow].reshape(len(grow), BINS, 2).sum(2)
            self._counts[grow] = 0
            self._counts[grow, BINS // 2 : BINS // 2 + BINS] = pairs
            self._exponent[grow] += 1
