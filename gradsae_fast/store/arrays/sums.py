"""Sums of a segment's values: per document and latent, and per latent.

N tokens, M documents, C latents, Z non-zeros, R pairs of a document and a latent active on one of its counted tokens.
Values are float32; sums run in float64 in token order, so they are bitwise repeatable. NaN goes into every sum and
maximum that it meets.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from gradsae_fast.store.format.layout import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountedTokens:
    """Which tokens of a segment count, document by document."""

    edges: Array  # int64 [M+1]: tokens of document m are edges[m] to edges[m+1]
    counted: Array  # bool [N]

    def per_document(self) -> Array:
        """Return the number of counted tokens of each document, uint32 [M]."""
        total = np.concatenate([[0], np.cumsum(self.counted, dtype=np.int64)])
        return np.diff(total[self.edges]).astype(np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """The (document, latent) pairs of a segment, as CSR over documents."""

    indptr: Array  # int64 [M+1]
    indices: Array  # int64 [R], ascending inside a document


class PairSums(NamedTuple):
    """Sums of one value over the counted tokens of each pair, all [R]."""

    entries: Array  # int64
    total: Array  # float64
    positive: Array  # float64, of max(value, 0)
    absolute: Array  # float64
    maximum: Array  # float64


class LatentSums(NamedTuple):
    """Sums of one value over the counted tokens of each latent, all [C]; 0 where the latent is never active."""

    entries: Array  # int64
    positive_entries: Array  # int64
    negative_entries: Array  # int64
    total: Array  # float64
    absolute: Array  # float64
    maximum: Array  # float64
    max_absolute: Array  # float64


def find_pairs(tokens: CountedTokens, indptr: Array, indices: Array, num_latents: int) -> Pairs:
    """List the latents of each document that are active on a counted token."""
    seen = np.full(num_latents, -1, np.int64)
    pair_edges = np.zeros(len(tokens.edges), np.int64)
    _count_pairs(tokens.edges, tokens.counted, indptr, indices, seen, pair_edges[1:])
    np.cumsum(pair_edges, out=pair_edges)
    latents = np.empty(pair_edges[-1], np.int64)
    seen.fill(-1)
    _fill_pairs(tokens.edges, tokens.counted, indptr, indices, seen, pair_edges, latents)
    return Pairs(indptr=pair_edges, indices=latents)


def sum_pairs(
    pairs: Pairs, tokens: CountedTokens, indptr: Array, indices: Array, values: Array, num_latents: int
) -> PairSums:
    """Sum `values` float32 [Z] over the counted tokens of each pair."""
    num_pairs = len(pairs.indices)
    sums = PairSums(np.zeros(num_pairs, np.int64), *(np.zeros(num_pairs) for _ in range(4)))
    slot = np.empty(num_latents, np.int64)
    _sum_pairs(pairs.indptr, pairs.indices, tokens.edges, tokens.counted, indptr, indices, values, slot, *sums)
    return sums


def sum_latents(counted: Array, indptr: Array, indices: Array, values: Array, num_latents: int) -> LatentSums:
    """Sum `values` float32 [Z] over the counted tokens (bool [N]) of each latent."""
    counts = (np.zeros(num_latents, np.int64) for _ in range(3))
    sums = LatentSums(*counts, *(np.zeros(num_latents) for _ in range(4)))
    _sum_latents(counted, indptr, indices, values, *sums)
    return sums


@numba.njit(nogil=True, cache=True)
def _count_pairs(edges: Array, counted: Array, indptr: Array, indices: Array, seen: Array, num_pairs: Array) -> None:
    for m in range(len(edges) - 1):
        for n in range(edges[m], edges[m + 1]):
            if counted[n]:
                for z in range(indptr[n], indptr[n + 1]):
                    c = np.int64(indices[z])
                    if seen[c] != m:
                        seen[c] = m
                        num_pairs[m] += 1


@numba.njit(nogil=True, cache=True)
def _fill_pairs(
    edges: Array, counted: Array, indptr: Array, indices: Array, seen: Array, pair_edges: Array, latents: Array
) -> None:
    for m in range(len(edges) - 1):
        r = pair_edges[m]
        for n in range(edges[m], edges[m + 1]):
            if counted[n]:
                for z in range(indptr[n], indptr[n + 1]):
                    c = np.int64(indices[z])
                    if seen[c] != m:
                        seen[c] = m
                        latents[r] = c
                        r += 1
        latents[pair_edges[m] : r].sort()


@numba.njit(nogil=True, cache=True)
def _sum_pairs(
    pair_edges: Array,
    latents: Array,
    edges: Array,
    counted: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    slot: Array,
    count: Array,
    total: Array,
    positive: Array,
    absolute: Array,
    maximum: Array,
) -> None:
    for m in range(len(edges) - 1):
        for r in range(pair_edges[m], pair_edges[m + 1]):
            slot[latents[r]] = r
        for n in range(edges[m], edges[m + 1]):
            if counted[n]:
                for z in range(indptr[n], indptr[n + 1]):
                    r = slot[np.int64(indices[z])]
                    value = np.float64(values[z])
                    if count[r] == 0 or value > maximum[r] or np.isnan(value):
                        maximum[r] = value
                    count[r] += 1
                    total[r] += value
                    absolute[r] += abs(value)
                    if not value <= 0:  # NaN too
                        positive[r] += value


@numba.njit(nogil=True, cache=True)
def _sum_latents(
    counted: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    count: Array,
    count_positive: Array,
    count_negative: Array,
    total: Array,
    absolute: Array,
    maximum: Array,
    max_absolute: Array,
) -> None:
    for n in range(len(counted)):
        if counted[n]:
            for z in range(indptr[n], indptr[n + 1]):
                c = np.int64(indices[z])
                value = np.float64(values[z])
                if count[c] == 0 or value > maximum[c] or np.isnan(value):
                    maximum[c] = value
                if abs(value) > max_absolute[c] or np.isnan(value):
                    max_absolute[c] = abs(value)
                count[c] += 1
                count_positive[c] += value > 0
                count_negative[c] += value < 0
                total[c] += value
                absolute[c] += abs(value)
