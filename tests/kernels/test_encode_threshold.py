"""Letters: N tokens, D model width, C latents."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, encode_threshold
from gradsae_kernels.sparse_rows import concatenate

Integers = Callable[..., Tensor]
Same = Callable[[SparseRows, SparseRows], bool]

# Never a multiple of a tile, a block or a lane; one side of each is a single one.
RAGGED = [(1, 1, 1), (3, 5, 17), (37, 9, 63), (130, 24, 130), (1, 7, 1000), (1030, 3, 129)]


def dense(rows: SparseRows, num_latents: int) -> Tensor:
    counts = rows.indptr.diff()
    dense_NC = torch.zeros(len(counts), num_latents)
    dense_NC[torch.repeat_interleave(torch.arange(len(counts)), counts), rows.indices.long()] = rows.values
    return dense_NC


@pytest.mark.parametrize(("n", "d", "c"), RAGGED)
@pytest.mark.parametrize("rule", ["plain", "negative threshold", "two-sided", "gated", "scale", "offset"])
def test_tiled_equals_the_oracle_on_exact_numbers(
    path: str, small_integers: Integers, same: Same, poisoned: None, n: int, d: int, c: int, rule: str
) -> None:
    x_ND, w_CD, bias_C = small_integers(n, d), small_integers(c, d), small_integers(c)
    threshold_C = small_integers(c).abs() * d**0.5
    options: dict[str, Any] = {
        "plain": {},
        "negative threshold": {},
        "two-sided": {"negative_threshold_C": small_integers(c).abs() * d**0.5},
        "gated": {"scale_C": small_integers(c) / 2, "offset_C": small_integers(c)},
        "scale": {"scale_C": small_integers(c) / 2},
        "offset": {"offset_C": small_integers(c) * 4},
    }[rule]
    if rule == "negative threshold":
        threshold_C = -threshold_C
    tiled = encode_threshold(x_ND, w_CD, bias_C, threshold_C, backend=Backend.TILED, **options)
    oracle = encode_threshold(x_ND, w_CD, bias_C, threshold_C, backend=Backend.REFERENCE, **options)
    assert same(tiled, oracle)
    assert torch.all(tiled.values != 0)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.TILED])
def test_values_follow_the_rule_by_hand(path: str, backend: Backend) -> None:
    x_ND, eye, zero = torch.tensor([[2.0, -3.0, 0.5, 0.0]]), torch.eye(4), torch.zeros(4)

    def encoded(threshold: list[float], **options: Any) -> list[list[float]]:
        rows = encode_threshold(x_ND, eye, zero, torch.tensor(threshold), backend=backend, **options)
        return [rows.indices.tolist(), rows.values.tolist()]

    assert encoded([0.0, 0.0, 0.0, 0.0]) == [[0, 2], [2.0, 0.5]]
    assert encoded([2.0, 0.0, 0.5, 0.0]) == [[], []], "the threshold itself does not fire"
    assert encoded([-9.0, -9.0, -9.0, -9.0]) == [[0, 2], [2.0, 0.5]], "relu makes zeros, and zeros are dropped"
    assert encoded([1.0] * 4, negative_threshold_C=torch.ones(4)) == [[0, 1], [2.0, -3.0]]
    assert encoded([1.0] * 4, negative_threshold_C=torch.full((4,), 3.0)) == [[0], [2.0]], "strict on both sides"
    assert encoded([-1.0] * 4, negative_threshold_C=torch.ones(4)) == [[0, 1, 2], [2.0, -3.0, 0.5]]
    gate = {"scale_C": torch.full((4,), 2.0), "offset_C": torch.tensor([-4.0, 7.0, 1.0, 0.0])}
    assert encoded([-9.0] * 4, **gate) == [[1, 2], [1.0, 2.0]]
    assert encoded([torch.inf] * 4) == [[], []]


def test_random_numbers_differ_from_fp64_only_inside_the_error_band(path: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x_ND, w_CD = torch.randn(211, 57, generator=generator), torch.randn(3001, 57, generator=generator)
    threshold_C = torch.full((3001,), 20.0)
    found_NC = dense(encode_threshold(x_ND, w_CD, torch.zeros(3001), threshold_C), 3001)
    u_NC = x_ND.double() @ w_CD.double().T
    band_NC = 57 * 2.0**-24 * (x_ND.abs() @ w_CD.abs().T)
    clear_NC = (u_NC - 20.0).abs() > band_NC
    assert clear_NC.float().mean() > 0.99
    assert torch.equal((found_NC != 0)[clear_NC], (u_NC > 20.0)[clear_NC])
    fires_NC = found_NC != 0
    assert ((found_NC - u_NC).abs()[fires_NC] <= band_NC[fires_NC]).all()


def test_every_latent_may_fire(path: str, same: Same) -> None:
    x_ND, w_CD, bias_C = torch.ones(65, 2), torch.ones(2500, 2), torch.arange(2500.0)
    rows = encode_threshold(x_ND, w_CD, bias_C, torch.zeros(2500))
    assert torch.equal(rows.indptr, torch.arange(66) * 2500)
    assert torch.equal(rows.indices, torch.arange(2500, dtype=torch.int32).repeat(65))
    assert torch.equal(rows.values, (torch.arange(2500.0) + 2).repeat(65))


def test_no_tokens_give_no_rows(path: str) -> None:
    for backend in (Backend.REFERENCE, Backend.TILED):
        rows = encode_threshold(torch.zeros(0, 3), torch.ones(5, 3), torch.zeros(5), torch.zeros(5), backend=backend)
        assert rows.indptr.tolist() == [0]
        assert len(rows.indices) == len(rows.values) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_count_as_their_fp32_values(path: str, same: Same, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x_ND, w_CD = torch.randn(41, 33, generator=generator), torch.randn(777, 33, generator=generator).to(dtype)
    threshold_C, bias_C = torch.full((777,), 9.0), torch.zeros(777)
    assert same(
        encode_threshold(x_ND, w_CD, bias_C, threshold_C),
        encode_threshold(x_ND, w_CD.float(), bias_C, threshold_C),
    )


def test_any_float_and_any_layout_of_x_is_taken(path: str, small_integers: Integers, same: Same) -> None:
    x_ND, w_CD, zero = small_integers(20, 6), small_integers(90, 6), torch.zeros(90)
    expected = encode_threshold(x_ND, w_CD, zero, zero)
    for other in (x_ND.T.contiguous().T, x_ND.double(), x_ND.bfloat16(), x_ND.half().requires_grad_()):
        assert same(encode_threshold(other, w_CD.clone().requires_grad_(), zero, zero), expected)


def test_split_tokens_and_repeated_calls_give_the_same_rows(path: str, small_integers: Integers, same: Same) -> None:
    x_ND, w_CD, bias_C, threshold_C = small_integers(2100, 5), small_integers(70, 5), torch.zeros(70), torch.ones(70)
    whole = encode_threshold(x_ND, w_CD, bias_C, threshold_C)
    parts = [encode_threshold(part_ND, w_CD, bias_C, threshold_C) for part_ND in x_ND.split(333)]
    assert same(concatenate(parts), whole)
    assert all(same(encode_threshold(x_ND, w_CD, bias_C, threshold_C), whole) for _ in range(3))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.TILED])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf, 3e38])
def test_a_product_that_is_not_finite_is_reported_and_not_dropped(path: str, backend: Backend, damage: float) -> None:
    w_CD = torch.ones(300, 4)
    w_CD[250, 1] = damage
    x_ND = torch.ones(9, 4) * 2
    x_ND[:5] = 0 if damage == 3e38 else 2
    with pytest.raises(ContractError, match=f"row {5 if damage == 3e38 else 0} .*x is finite"):
        encode_threshold(x_ND, w_CD, torch.zeros(300), torch.zeros(300), backend=backend)


def test_scale_and_offset_are_refused_with_a_second_threshold() -> None:
    one = torch.ones(3)
    with pytest.raises(ContractError, match="one or the other"):
        encode_threshold(torch.ones(1, 2), torch.ones(3, 2), one, one, negative_threshold_C=one, offset_C=one)


MEMORY = """
import torch
from pathlib import Path
from typing import Any
from gradsae_kernels import encode_threshold, encode_topk

def peak_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

torch.manual_seed(0)
x_ND, w_CD, zero = torch.randn(4096, 64), torch.randn(131072, 64) / 8, torch.zeros(131072)
for tokens in (8, 4096):
    before = peak_megabytes()
    rows = encode_threshold(x_ND[:tokens], w_CD, zero, zero + 3.5)
    encode_topk(x_ND[: tokens // 16], w_CD, zero, 32)
print(len(rows.indices), peak_megabytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_far_below_the_dense_result() -> None:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads that wait leave the core to other tests
    child = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=environment)
    answer = child.stdout.split()
    nonzeros, growth = int(answer[0]), float(answer[1])
    assert nonzeros > 4096 * 20
    assert growth < 64 + 4 * nonzeros * 8 / 2**20, "dense fp32 pre-activations would be 2048 MB"
