"""Edges: every pair of latents that meets on a token, with sums over the tokens that count.

A segment's tokens carry two sets of latents (CSR) and a block of values each, row by row: the value of (upper j,
lower i) of token n is number j * k1[n] + i of its block. Pairs are never dense over dictionaries: they are listed,
sorted and added up, a bounded number at a time.

Letters: N tokens, P pairs on tokens, R different pairs, C1 latents below, C2 above.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array, DocumentTable, SparseScores, TokenTable

PAIRS_PER_RUN = 1 << 22  # listed at one time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentJacobian:
    """Everything that one segment adds to the store; latents carry their activations."""

    index: int
    tokens: TokenTable
    documents: DocumentTable
    lower: SparseScores  # no projections
    upper: SparseScores
    value_P: Array  # float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges:
    """Sums over tokens of R pairs, ordered by upper latent, then by lower; sums are of the derivative."""

    upper_R: Array  # int64
    lower_R: Array  # int64
    count_R: Array  # int64, tokens on which both are active
    sum_R: Array  # float64
    absolute_R: Array  # float64, Σ |J|
    maximum_R: Array  # float64, max |J|


def block_edges(lower_indptr: Array, upper_indptr: Array) -> Array:
    """Where each token's block begins, and where the last one ends, int64 [N + 1]."""
    sizes_N = np.diff(lower_indptr) * np.diff(upper_indptr)
    return np.concatenate([[0], np.cumsum(sizes_N)]).astype(np.int64)


def sum_edges(lower: SparseScores, upper: SparseScores, value_P: Array, counted_N: Array) -> Edges:
    """The edges of the tokens that count, bool [N]."""
    edges = merge_edges([])
    for start, stop in _runs(block_edges(lower.indptr, upper.indptr)):
        edges = merge_edges([edges, _edges_of(lower, upper, value_P, counted_N, start, stop)])
    return edges


def merge_edges(parts: list[Edges]) -> Edges:
    """The edges of several sets of tokens together."""
    upper, lower = (_joined(parts, name, np.int64) for name in ("upper_R", "lower_R"))
    order = np.lexsort((lower, upper))
    upper, lower = upper[order], lower[order]
    first = np.ones(len(order), bool)
    first[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
    starts = np.flatnonzero(first)

    def reduced(name: str, dtype: type, reduce: np.ufunc = np.add) -> Array:
        values = _joined(parts, name, dtype)[order]
        return reduce.reduceat(values, starts) if len(starts) else values

    return Edges(
        upper_R=upper[starts],
        lower_R=lower[starts],
        count_R=reduced("count_R", np.int64),
        sum_R=reduced("sum_R", np.float64),
        absolute_R=reduced("absolute_R", np.float64),
        maximum_R=reduced("maximum_R", np.float64, np.maximum),
    )


def _edges_of(
    lower: SparseScores, upper: SparseScores, value_P: Array, counted_N: Array, start: int, stop: int
) -> Edges:
    """The pairs of tokens `start` to `stop`, added up."""
    token_P, lower_entry_P, upper_entry_P = _pairs(lower.indptr[start : stop + 1], upper.indptr[start : stop + 1])
    edges = block_edges(lower.indptr, upper.indptr)
    kept = counted_N[start:stop][token_P]
    value = value_P[edges[start] : edges[stop]][kept].astype(np.float64)
    ones = np.ones(len(value), np.int64)
    single = Edges(
        upper_R=upper.indices[upper_entry_P[kept]],
        lower_R=lower.indices[lower_entry_P[kept]],
        count_R=ones,
        sum_R=value,
        absolute_R=np.abs(value),
        maximum_R=np.abs(value),
    )
    return merge_edges([single])


def _pairs(lower_indptr: Array, upper_indptr: Array) -> tuple[Array, Array, Array]:
    """Token, lower entry and upper entry of every pair of some tokens, in the order of their blocks."""
    k1_N = np.diff(lower_indptr)
    edges = block_edges(lower_indptr, upper_indptr)
    token_P = np.repeat(np.arange(len(k1_N)), np.diff(edges))
    within_P = np.arange(edges[-1]) - edges[token_P]
    above_P, below_P = np.divmod(within_P, np.maximum(k1_N, 1)[token_P])
    return token_P, lower_indptr[token_P] + below_P, upper_indptr[token_P] + above_P


def _runs(edges: Array) -> Iterator[tuple[int, int]]:
    """Tokens cut into runs of about PAIRS_PER_RUN pairs, at least one token each."""
    start, last = 0, len(edges) - 1
    while start < last:
        stop = int(np.searchsorted(edges, edges[start] + PAIRS_PER_RUN, side="right")) - 1
        stop = min(max(stop, start + 1), last)
        yield start, stop
        start = stop


def _joined(parts: list[Edges], name: str, dtype: type) -> Array:
    return np.concatenate([np.zeros(0, dtype), *(getattr(part, name) for part in parts)]).astype(dtype)
