"""Histograms that find their range as they go count what numpy counts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradsae_fast.report.histogram import SHOWN, Histograms

VALUES = st.one_of(
    st.just(0.0), st.floats(-1e30, 1e30, allow_subnormal=False), st.floats(-1.0, 1.0, allow_subnormal=False)
)


@given(st.lists(st.tuples(st.integers(0, 2), VALUES), min_size=1, max_size=60), st.integers(1, 60))
def test_counts_are_numpys_whatever_the_order_of_arrival(pairs: list[tuple[int, float]], split: int) -> None:
    row, value = np.array([r for r, _ in pairs]), np.array([v for _, v in pairs], np.float64)
    once, twice = Histograms(3), Histograms(3)
    once.add(row, value)
    for part in (slice(split, None), slice(None, split)):
        twice.add(row[part], value[part])
    for number in range(3):
        found, again, mine = once.of(number), twice.of(number), value[row == number]
        if found is None:
            assert len(mine) == 0
            continue
        assert again is not None
        np.testing.assert_array_equal(found.edges, again.edges)
        np.testing.assert_array_equal(found.counts, again.counts)
        bins = np.searchsorted(found.edges, mine, side="right") - 1
        np.testing.assert_array_equal(found.counts, np.bincount(bins, minlength=len(found.counts)))
        assert found.counts[0]
        assert found.counts[-1]
        assert len(found.counts) <= SHOWN
        assert (np.diff(np.sign(found.edges[found.edges != 0])) != 0).sum() == 0 or 0 in found.edges
