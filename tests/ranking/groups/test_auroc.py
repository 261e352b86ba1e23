import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gradsae_fast.ranking.groups import auroc as module
from gradsae_fast.ranking.groups.auroc import auroc
from gradsae_fast.records import Array


def expected(dense_SC: Array, is_a_S: Array, is_b_S: Array) -> Array:
    found = scipy.stats.mannwhitneyu(dense_SC[is_a_S], dense_SC[is_b_S], axis=0).statistic
    return np.asarray(found / (is_a_S.sum() * is_b_S.sum()))


@given(seed=st.integers(0, 2**32 - 1), run=st.sampled_from([1, 5, 1 << 20]))
def test_the_area_is_mann_and_whitneys_u_over_the_pairs(seed: int, run: int) -> None:
    rng = np.random.default_rng(seed)
    num_a, num_b, num_latents = rng.integers(1, 8, 3)
    dense = rng.integers(-3, 4, (num_a + num_b + 2, num_latents)) * (rng.random((num_a + num_b + 2, num_latents)) < 0.6)
    group = rng.permutation([0] * num_a + [1] * num_b + [2] * 2)  # 2: a document of neither group
    sparse = scipy.sparse.csc_array(dense.astype(np.float64))
    sparse.data[rng.random(sparse.nnz) < 0.2] = 0  # active, with a score of 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS_AT_ONCE", run)
        found = auroc(sparse, group == 0, group == 1)
    np.testing.assert_allclose(found, expected(sparse.toarray(), group == 0, group == 1), rtol=1e-12)


def test_a_latent_that_tells_the_groups_apart_has_one_or_zero_and_a_silent_one_has_a_half() -> None:
    dense = np.array([[1.0, -1, 0, 1], [2, -2, 0, 0], [0, 0, 0, 1], [0.5, -0.5, 0, 0]])
    first_two = np.array([True, True, False, False])
    np.testing.assert_array_equal(auroc(scipy.sparse.csc_array(dense), first_two, ~first_two), [1, 0, 0.5, 0.5])


def test_a_score_that_is_not_a_number_leaves_its_latent_without_an_area() -> None:
    dense = np.array([[1.0, np.nan, 3], [2, 5, 1]])
    first = np.array([True, False])
    np.testing.assert_array_equal(auroc(scipy.sparse.csc_array(dense), first, ~first), [0, np.nan, 1])


def test_infinite_scores_tie() -> None:
    dense = np.array([[np.inf, -np.inf], [np.inf, -np.inf], [np.inf, 0]])
    first = np.array([True, False, False])
    np.testing.assert_array_equal(auroc(scipy.sparse.csc_array(dense), first, ~first), [0.5, 0.25])
