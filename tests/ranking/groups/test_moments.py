import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from gradsae_fast.ranking.groups.moments import Moments, effect_size, false_discovery_rate, welch_test
from gradsae_fast.records import Array


def moments_of(dense_SC: Array) -> Moments:
    found = Moments(dense_SC.shape[1])
    found.add(scipy.sparse.csr_array(dense_SC), np.ones(len(dense_SC), np.int64))
    return found


def test_means_and_spreads_of_parts_put_together_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.normal(size=(23, 5)) + 1e6) * (rng.random((23, 5)) < 0.7)
    dense[:, 4] = 1e6 + rng.random(23)  # a sum of squares would lose half of its digits
    whole = Moments(5)
    for part in np.split(dense, [0, 1, 9, 22]):
        whole.merge(moments_of(part))
    assert whole.num_documents == whole.num_tokens == 23
    assert whole.num_active.tolist() == np.count_nonzero(dense, axis=0).tolist()
    np.testing.assert_allclose(whole.mean, dense.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.variance, dense.var(0, ddof=1), rtol=1e-9)


def test_degrees_of_freedom_are_those_of_welch_and_satterthwaite() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4, 6)) * 9, rng.normal(size=(15, 6)) + 2
    t, p = welch_test(moments_of(a), moments_of(b))
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    np.testing.assert_allclose(t, expected.statistic, rtol=1e-12)
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-12)
    t, p = welch_test(moments_of(np.full((4, 6), 3.0)), moments_of(b))  # one group without spread
    expected = scipy.stats.ttest_1samp(b, 3)
    np.testing.assert_allclose(t, -expected.statistic, rtol=1e-12)
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-12)


@pytest.mark.parametrize("number", [100, 100_000_000])
def test_a_spread_is_rounding_or_not_whatever_the_number_of_documents(number: int) -> None:
    a, b = Moments(2), Moments(2)
    for group, mean in ((a, 1.0), (b, 1.0001)):
        group.num_documents = number
        group.mean = np.full(2, mean)
        group.squares = number * np.array([1e-6, 1e-9]) ** 2  # documents differ by a millionth, and by rounding
    t, _ = welch_test(a, b)
    np.testing.assert_allclose(effect_size(a, b), [-100, np.nan], rtol=0.01)
    np.testing.assert_allclose(t, [-100 * np.sqrt(number / 2), np.nan], rtol=0.01)
    np.testing.assert_array_equal(a.deviation == 0, [False, True])


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_false_discovery_rates_are_those_of_scipy_and_skip_what_was_not_tested(count: int) -> None:
    rng = np.random.default_rng(count)
    p = np.round(rng.random(count), 2) ** 3  # ties, zeros
    if count:
        np.testing.assert_allclose(false_discovery_rate(p), scipy.stats.false_discovery_control(p), rtol=1e-14)
    with_gaps = np.insert(p, [0, count // 2, count], np.nan).reshape(-1, 1)
    q = false_discovery_rate(with_gaps)
    assert q.shape == with_gaps.shape
    np.testing.assert_array_equal(np.isnan(q), np.isnan(with_gaps))
    np.testing.assert_array_equal(q[~np.isnan(q)], false_discovery_rate(p))
