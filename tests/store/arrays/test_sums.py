"""Sums against dense brute force."""

import numpy as np
import pytest

from gradsae_fast.store.arrays.sums import CountedTokens, find_pairs, sum_latents, sum_pairs
from tests.store.synthetic import dense, make_scores

EDGES = np.array([0, 9, 9, 30, 50])  # the second document is empty


@pytest.mark.parametrize("masked", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("signed", [False, True])
def test_sums_are_those_of_a_dense_matrix_without_masked_tokens(masked: float, signed: bool) -> None:
    rng = np.random.default_rng(2)
    scores = make_scores(rng, 50, 20, 4, ["m"], signed)
    counted = rng.random(50) >= masked
    tokens = CountedTokens(edges=EDGES, counted=counted)
    pairs = find_pairs(tokens, scores.indptr, scores.indices, 20)
    sums = sum_pairs(pairs, tokens, scores.indptr, scores.indices, scores.activation, 20)
    stats = sum_latents(counted, scores.indptr, scores.indices, scores.activation, 20)
    matrix = dense(scores, scores.activation)
    found = 0
    for document in range(4):
        rows = matrix[EDGES[document] : EDGES[document + 1]][counted[EDGES[document] : EDGES[document + 1]]]
        pair = slice(pairs.indptr[document], pairs.indptr[document + 1])
        active = np.flatnonzero((rows != 0).any(axis=0))
        assert pairs.indices[pair].tolist() == active.tolist()
        rows = np.where(rows == 0, np.nan, rows)[:, active]
        if active.size:
            np.testing.assert_array_equal(sums.entries[pair], (~np.isnan(rows)).sum(axis=0))
            np.testing.assert_allclose(sums.total[pair], np.nansum(rows, axis=0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(sums.positive[pair], np.nansum(rows.clip(min=0), axis=0), rtol=1e-12)
            np.testing.assert_allclose(sums.absolute[pair], np.nansum(np.abs(rows), axis=0), rtol=1e-12)
            np.testing.assert_array_equal(sums.maximum[pair], np.nanmax(rows, axis=0))
            found += active.size
    assert found == len(pairs.indices)
    kept = matrix[counted]
    np.testing.assert_array_equal(stats.entries, (kept != 0).sum(axis=0))
    np.testing.assert_array_equal(stats.positive_entries, (kept > 0).sum(axis=0))
    np.testing.assert_array_equal(stats.negative_entries, (kept < 0).sum(axis=0))
    np.testing.assert_allclose(stats.total, kept.sum(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats.absolute, np.abs(kept).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(stats.max_absolute, np.abs(kept).max(axis=0, initial=0))
    maximum = [column[column != 0].max(initial=-np.inf) for column in kept.T]
    np.testing.assert_array_equal(stats.maximum, [0 if np.isinf(value) else value for value in maximum])
    assert tokens.per_document().tolist() == [counted[a:b].sum() for a, b in ((0, 9), (9, 9), (9, 30), (30, 50))]


def test_nan_shows_in_every_sum_and_maximum_that_it_meets() -> None:
    values = np.array([1.0, np.nan, 2.0], np.float32)
    tokens = CountedTokens(edges=np.array([0, 3]), counted=np.ones(3, bool))
    indptr, indices = np.arange(4), np.zeros(3, np.int64)
    pairs = find_pairs(tokens, indptr, indices, 1)
    sums = sum_pairs(pairs, tokens, indptr, indices, values, 1)
    stats = sum_latents(tokens.counted, indptr, indices, values, 1)
    assert all(np.isnan(part[0]) for part in sums[1:])
    assert np.isnan([stats.total[0], stats.absolute[0], stats.maximum[0], stats.max_absolute[0]]).all()
