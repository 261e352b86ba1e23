"""The permutation test: how often do the documents, dealt anew into groups of the same sizes, differ as much?

The statistic of a latent is |difference of means| over the standard deviation of all its samples. That deviation does
not change when documents are dealt anew, so that for one latent the statistic is the difference itself, and with fixed
group sizes it grows with Student's |t|: its maximum over latents compares latents of different scale (single-step
maxT, Westfall and Young 1993). The test takes documents for exchangeable, which they are not where they hang together
in other ways than by group: by author, or by year.

Letters: S documents of both groups, C latents, B relabellings of a block, R relabellings in all.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from gradsae_fast.records import Array

# A sum over documents depends on their order in its last bits: statistics this close are equal.
_ROUNDING = 1e-9
_CELLS_OF_BLOCK = 1 << 22
_BLOCK = 64  # relabellings whose sums stay in a core's cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PermutationTest:
    """p values of C latents; NaN where a latent has a NaN sample."""

    p: Array  # of each latent alone
    p_max: Array  # corrected for all latents compared: chance that any latent reaches this statistic
    num_relabellings: int  # R, made beside the true grouping
    is_complete: bool  # R are all there are: nothing was drawn


def permutation_test(
    blocks: Iterable[tuple[Array, scipy.sparse.csc_array]],
    is_a_S: Array,
    spread_C: Array,
    *,
    permutations: int,
    seed: int,
) -> PermutationTest:
    """Test the difference of means of every latent, two-sided: p = (1 + as large or larger) / (1 + R).

    All relabellings are made where there are no more than were asked for, else as many are drawn as asked. Sums of
    few relabellings at a time are held.

    Args:
        blocks: ascending latents and their samples [S, latents], all rows the documents of both groups.
        is_a_S: which documents are in group a, bool; the others are in b.
        spread_C: standard deviation of all samples of each latent.
        permutations: how many relabellings to draw.
        seed: of the draw.
    """
    num_all = _num_relabellings(len(is_a_S), int(is_a_S.sum()), permutations)
    is_complete = num_all is not None
    number = permutations if num_all is None else num_all - 1
    reached_C = np.zeros(len(spread_C), np.int64)
    observed_C = np.full(len(spread_C), np.nan)
    largest_R = np.zeros(number)
    for latents, matrix in blocks:
        statistic = _Statistic(matrix, is_a_S, spread_C[latents])
        observed_C[latents] = statistic.of(is_a_S[:, None])[:, 0]
        done = 0
        for labels_SB in _relabellings(is_a_S, None if is_complete else number, seed, len(latents)):
            values_CB = statistic.of(labels_SB)
            reached_C[latents] += (values_CB >= observed_C[latents, None] - _ROUNDING).sum(1)
            part_B = largest_R[done : done + values_CB.shape[1]]
            np.maximum(part_B, np.fmax.reduce(values_CB, axis=0, initial=0), out=part_B)
            done += values_CB.shape[1]
    reached_by_any_C = number - np.searchsorted(np.sort(largest_R), observed_C - _ROUNDING)
    p, p_max = ((1 + count_C) / (1 + number) for count_C in (reached_C, reached_by_any_C))
    known = ~np.isnan(observed_C)
    return PermutationTest(
        p=np.where(known, p, np.nan),
        p_max=np.where(known, p_max, np.nan),
        num_relabellings=number,
        is_complete=is_complete,
    )


class _Statistic:
    """|difference of means| over the spread, of the latents of one block for any groupings."""

    def __init__(self, matrix_SC: scipy.sparse.csc_array, is_a_S: Array, spread_C: Array) -> None:
        self._matrix_CS = matrix_SC.T  # a view, as CSR
        self._total_C = matrix_SC.sum(0)
        self._num_a = int(is_a_S.sum())
        self._num_b = len(is_a_S) - self._num_a
        self._spread_C = spread_C

    def of(self, labels_SB: Array) -> Array:
        """Return the statistic of B groupings, float64 [C, B]; 0 where nothing differs."""
        sum_CB = self._matrix_CS @ labels_SB.astype(np.float64)
        difference_CB = sum_CB * (1 / self._num_a + 1 / self._num_b) - self._total_C[:, None] / self._num_b
        spread_C1 = np.where(self._spread_C == 0, np.inf, self._spread_C)[:, None]
        return abs(difference_CB) / spread_C1


def _relabellings(is_a_S: Array, number: int | None, seed: int, num_latents: int) -> Iterator[Array]:
    """Yield blocks of relabellings, bool [S, B]: as many as asked for, or (None) all but the true one.

    What is drawn does not depend on the size of the blocks.
    """
    widest = _CELLS_OF_BLOCK // max(num_latents, len(is_a_S), 1)
    block = min(_BLOCK, max(1, widest))
    if number is None:
        true = tuple(np.flatnonzero(is_a_S))
        others = (chosen for chosen in itertools.combinations(range(len(is_a_S)), len(true)) if chosen != true)
        while group := list(itertools.islice(others, block)):
            labels_BS = np.zeros((len(group), len(is_a_S)), bool)
            np.put_along_axis(labels_BS, np.array(group), True, axis=1)
            yield labels_BS.T
        return
    draw = np.random.default_rng(seed)
    for start in range(0, number, block):
        width = min(block, number - start)
        yield draw.permuted(np.broadcast_to(is_a_S, (width, len(is_a_S))), axis=1).T


def _num_relabellings(num_documents: int, num_a: int, limit: int) -> int | None:
    """Return in how many ways the documents can be dealt, counted only as far as needed: None if over 1 + limit."""
    ways = 1
    for taken in range(min(num_a, num_documents - num_a)):
        ways = ways * (num_documents - taken) // (taken + 1)
        if ways > limit + 1:
            return None
    return ways
