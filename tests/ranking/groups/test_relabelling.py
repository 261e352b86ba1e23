import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from gradsae_fast.ranking.groups import relabelling
from gradsae_fast.ranking.groups.relabelling import PermutationTest, permutation_test
from gradsae_fast.records import Array

LABELS = np.array([True, False, True, False, False, True, False])


def run_test(
    dense_SC: Array, is_a_S: Array, *, permutations: int, seed: int = 0, num_blocks: int = 1
) -> PermutationTest:
    sparse = scipy.sparse.csc_array(dense_SC)

    def blocks() -> Iterator[tuple[Array, scipy.sparse.csc_array]]:
        for latents in np.array_split(np.arange(dense_SC.shape[1]), num_blocks):
            yield latents, sparse[:, latents]

    return permutation_test(blocks(), is_a_S, dense_SC.std(0, ddof=1), permutations=permutations, seed=seed)


def draw(num_documents: int, num_latents: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_documents, num_latents)) * (rng.random((num_documents, num_latents)) < 0.7)


def test_all_relabellings_of_small_groups_give_scipys_exact_p() -> None:
    dense = draw(7, 5)
    dense[:, 4] = np.round(dense[:, 4])  # ties
    found = run_test(dense, LABELS, permutations=1000)
    exact = scipy.stats.permutation_test(
        (dense[LABELS], dense[~LABELS]),
        lambda a, b, axis: abs(a.mean(axis) - b.mean(axis)),
        n_resamples=10_000,
        alternative="greater",
        vectorized=True,
    )
    assert found.is_complete
    assert found.num_relabellings == 34
    np.testing.assert_allclose(found.p, exact.pvalue, rtol=1e-12)


def test_p_max_counts_the_relabellings_in_which_any_latents_t_is_as_large() -> None:
    dense = draw(7, 4) * [1, 1000, 1e-6, 1]  # scales must not matter
    found = run_test(dense, LABELS, permutations=1000)
    t = []
    for chosen in itertools.combinations(range(7), 3):
        is_a = np.isin(np.arange(7), chosen)
        t.append(abs(scipy.stats.ttest_ind(dense[is_a], dense[~is_a]).statistic))
    observed = abs(scipy.stats.ttest_ind(dense[LABELS], dense[~LABELS]).statistic)
    expected = (np.max(t, axis=1)[:, None] >= observed * (1 - 1e-9)).mean(0)
    np.testing.assert_allclose(found.p_max, expected, rtol=1e-12)
    assert (found.p_max >= found.p).all()


def test_drawn_relabellings_come_close_to_the_exact_p() -> None:
    dense, is_a = draw(16, 6), np.arange(16) % 2 == 0
    exact, drawn = (run_test(dense, is_a, permutations=number) for number in (20_000, 4_000))
    assert (exact.is_complete, drawn.is_complete) == (True, False)
    assert drawn.num_relabellings == 4_000
    np.testing.assert_allclose(drawn.p, exact.p, atol=0.03)
    np.testing.assert_allclose(drawn.p_max, exact.p_max, atol=0.03)
    assert (drawn.p >= 1 / 4_001).all()


def test_a_large_difference_gets_the_smallest_p_there_is() -> None:
    dense = np.concatenate([np.full((20, 1), 5.0), np.zeros((20, 1))]) + draw(40, 1) / 100
    found = run_test(dense, np.arange(40) < 20, permutations=99)
    assert (found.p[0], found.p_max[0]) == (0.01, 0.01)


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("cells", [1, 100, 1 << 22])
def test_what_is_drawn_does_not_depend_on_memory(num_blocks: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, is_a = draw(30, 6), np.arange(30) < 11
    whole = run_test(dense, is_a, permutations=70, seed=3)
    monkeypatch.setattr(relabelling, "_CELLS_OF_BLOCK", cells)
    parts = run_test(dense, is_a, permutations=70, seed=3, num_blocks=num_blocks)
    np.testing.assert_array_equal(whole.p, parts.p)
    np.testing.assert_array_equal(whole.p_max, parts.p_max)
    assert (run_test(dense, is_a, permutations=70, seed=4).p != whole.p).any()


def test_a_constant_latent_never_differs_and_one_with_nan_is_not_tested() -> None:
    dense = np.stack([np.full(7, 0.1), draw(7, 1)[:, 0], np.where(LABELS, np.nan, 1.0)], axis=1)
    dense[:, 0] += 0  # its sums over other documents differ in the last bit at most
    found = run_test(dense, LABELS, permutations=50)
    assert found.p[0] == found.p_max[0] == 1
    np.testing.assert_array_equal(np.isnan(found.p), [False, False, True])
    np.testing.assert_array_equal(np.isnan(found.p_max), [False, False, True])
    np.testing.assert_array_equal(found.p_max[1], run_test(dense[:, 1:2], LABELS, permutations=50).p_max[0])
