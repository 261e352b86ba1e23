"""Nothing is lost between bins and rows: a model in numpy fills the bins, in any order, and the kernels finish them.

Letters: N tokens, C latents, k as in top-k.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom
from torch import Tensor

from gradsae_kernels.emit.bins import Bins, rows_of_bins
from gradsae_kernels.encode_topk.fused import Sampling, sampling_for, select
from gradsae_kernels.launches import LAUNCHES, runs_triton

pytestmark = [
    pytest.mark.skipif(not runs_triton(torch.device("cpu")), reason="Triton's interpreter is off"),
    pytest.mark.filterwarnings("ignore:.*function-scoped fixture"),
]

FEW = settings(max_examples=12, deadline=None)


def model_bins(active_NC: Any, u_NC: Any, capacity: int, stripes: int, seed: int) -> Bins:
    """What a GPU may leave behind: appends in any order, counted past capacity, and rubbish where nobody wrote."""
    random = np.random.default_rng(seed)
    n, c = active_NC.shape
    records = np.full(((n + 1) * stripes, capacity), -1, np.int64)
    counts = np.zeros((n, stripes), np.int32)
    width = -(-c // stripes)
    for row, latent in random.permutation(np.argwhere(active_NC)):
        stripe = latent // width
        if counts[row, stripe] < capacity:
            bits = int(np.float32(u_NC[row, latent]).view(np.uint32))
            records[row * stripes + stripe, counts[row, stripe]] = (int(latent) << 32) | bits
        counts[row, stripe] += 1
    return Bins(records=torch.from_numpy(records), counts_NB=torch.from_numpy(counts), ordered=False)


@FEW
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70)),
    share=st.floats(0, 1),
    capacity=st.integers(1, 40),
    stripes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_rows_hold_all_that_fired_whatever_the_order_and_the_room(
    shape: tuple[int, int], share: float, capacity: int, stripes: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    active_NC, u_NC = random.random(shape) < share, random.standard_normal(shape).astype(np.float32)
    again: list[int] = []

    def fill_again(rows: Tensor, room: int) -> Bins:
        again.extend(rows.tolist())
        return model_bins(active_NC[rows.numpy()], u_NC[rows.numpy()], room, stripes, seed + 1)

    rows = rows_of_bins(model_bins(active_NC, u_NC, capacity, stripes, seed), fill_again)
    assert rows.indptr.tolist() == [0, *np.cumsum(active_NC.sum(axis=1)).tolist()]
    assert rows.indices.tolist() == np.argwhere(active_NC)[:, 1].tolist()
    assert rows.values.numpy().tobytes() == u_NC[active_NC].tobytes()
    width = -(-shape[1] // stripes)
    crowded = [any(row[s : s + width].sum() > capacity for s in range(0, shape[1], width)) for row in active_NC]
    assert again == np.flatnonzero(crowded).tolist(), "only rows without room are computed again"


def test_a_row_that_fires_otherwise_the_second_time_counts_as_it_did_then() -> None:
    """A library's product of fewer rows may round otherwise, and a screen of fewer rows lets fewer through."""
    first_NC, u_NC = np.ones((2, 9), bool), np.ones((2, 9), np.float32)
    first_NC[1, 4:] = False
    second_NC = np.ones((2, 40), bool)
    second_NC[0, 3] = False
    rooms = []

    def fill_again(rows: Tensor, room: int) -> Bins:
        rooms.append(room)
        return model_bins(second_NC[rows.numpy()], np.ones((2, 40), np.float32)[rows.numpy()], room, 1, 0)

    rows = rows_of_bins(model_bins(first_NC, u_NC, 4, 1, 0), fill_again)
    assert rows.indices.tolist() == [*(latent for latent in range(40) if latent != 3), *range(4)]
    assert rooms == [9, 39], "the room grows until it is enough"


def test_long_bins_are_sorted_and_short_ones_ranked_with_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    active_NC, u_NC = np.random.default_rng(0).random((3, 60)) < 0.5, np.ones((3, 60), np.float32)
    ranked = rows_of_bins(model_bins(active_NC, u_NC, 60, 1, 0), no_refill)
    monkeypatch.setattr("gradsae_kernels.emit.bins.LONGEST_RANKED", 8)
    LAUNCHES.clear()
    rows = rows_of_bins(model_bins(active_NC, u_NC, 60, 1, 0), no_refill)
    assert LAUNCHES["pack ordered"] == 1
    assert all(torch.equal(one, other) for one, other in zip(ranked, rows, strict=True))


def no_refill(rows: Tensor, room: int) -> Bins:
    raise AssertionError("a selected row cannot overflow")


@FEW
@given(
    c=st.integers(4, 60),
    k=st.integers(1, 12),
    bar=st.integers(0, 6),
    capacity=st.sampled_from([8, 16, 32, 64]),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_certified_row_is_the_exact_answer_and_no_other_is_kept(
    c: int, k: int, bar: int, capacity: int, signed: bool, seed: int
) -> None:
    u_NC = np.random.default_rng(seed).integers(-8, 9, (3, c)).astype(np.float32)  # many ties, also with the bar
    size_NC = np.abs(u_NC) if signed else u_NC
    bins = model_bins(size_NC > bar, u_NC, capacity, 1, seed)
    bar_N = torch.full((3,), float(bar))
    certified_N = select(bins, bar_N, k, signed)
    rows = rows_of_bins(bins, no_refill)
    above_N = (size_NC > bar).sum(axis=1)
    assert certified_N.tolist() == [(count <= capacity) and (count >= k or bar == 0) for count in above_N]
    for n in range(3):
        found = rows.indices[rows.indptr[n] : rows.indptr[n + 1]].tolist()
        best = sorted(range(c), key=lambda latent: (-size_NC[n, latent], latent))[:k]
        expected = sorted(latent for latent in best if size_NC[n, latent] > 0)
        assert found == (expected if certified_N[n] else [])


CASES = [(k, c) for k in (1, 2, 3, 8, 32, 64, 128, 200, 512, 1024) for c in (512, 4096, 16384, 65536, 131072, 2**20)]


@pytest.mark.parametrize(("k", "c"), CASES)
def test_a_sample_fails_fewer_than_one_row_in_a_hundred_thousand(k: int, c: int) -> None:
    sampling = sampling_for(k, c, 2304)
    if sampling is None:
        assert k * 16 > c or c == 512 or k >= 512, "only a k that is large for C, or very large, has no sample"
        return
    assert hypergeom.sf(sampling.rank - 1, c, k, sampling.size) < 1e-5
    # Too many candidates: fewer than `rank` of the sample among the `capacity` largest latents.
    assert hypergeom.cdf(sampling.rank - 1, c, sampling.capacity, sampling.size) < 5e-2


def test_the_sample_of_a_usual_dictionary() -> None:
    assert sampling_for(64, 65_536, 1024) == Sampling(size=4096, rank=18, capacity=1024)
