"""Letters: N tokens, D model width, C latents."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, encode_topk
from gradsae_kernels.sparse_rows import concatenate

Integers = Callable[..., Tensor]
Same = Callable[[SparseRows, SparseRows], bool]

RAGGED = [(1, 1, 1, 1), (3, 5, 17, 4), (37, 9, 63, 63), (130, 24, 130, 7), (2, 7, 1000, 900), (1030, 3, 129, 2)]


@pytest.mark.parametrize(("n", "d", "c", "k"), RAGGED)
@pytest.mark.parametrize("signed", [False, True])
def test_tiled_equals_the_oracle_ties_included(
    path: str, small_integers: Integers, same: Same, poisoned: None, n: int, d: int, c: int, k: int, signed: bool
) -> None:
    x_ND, w_CD, bias_C = small_integers(n, d), small_integers(c, d), small_integers(c)
    tiled = encode_topk(x_ND, w_CD, bias_C, k, signed=signed, backend=Backend.TILED)
    assert same(tiled, encode_topk(x_ND, w_CD, bias_C, k, signed=signed, backend=Backend.REFERENCE))
    assert torch.all(tiled.values != 0)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.TILED])
def test_equal_latents_go_to_the_smaller_id_and_rows_ascend(path: str, backend: Backend) -> None:
    x_ND, zero = torch.tensor([[1.0, 3.0, -3.0, 3.0, 0.0, 5.0]]), torch.zeros(6)

    def encoded(k: int, signed: bool = False) -> list[list[float]]:
        rows = encode_topk(x_ND, torch.eye(6), zero, k, signed=signed, backend=backend)
        return [rows.indices.tolist(), rows.values.tolist()]

    assert encoded(1) == [[5], [5.0]]
    assert encoded(2) == [[1, 5], [3.0, 5.0]]
    assert encoded(2, signed=True) == [[1, 5], [3.0, 5.0]]
    assert encoded(3, signed=True) == [[1, 2, 5], [3.0, -3.0, 5.0]]
    assert encoded(6) == [[0, 1, 3, 5], [1.0, 3.0, 3.0, 5.0]], "fewer than k are positive"
    assert encoded(6, signed=True) == [[0, 1, 2, 3, 5], [1.0, 3.0, -3.0, 3.0, 5.0]]


@pytest.mark.parametrize("k", [1, 31, 300])
def test_a_row_of_equal_latents_keeps_the_first_k(path: str, k: int) -> None:
    rows = encode_topk(torch.ones(5, 2), torch.ones(1100, 2), torch.zeros(1100), k)
    assert torch.equal(rows.indices.view(5, k), torch.arange(k, dtype=torch.int32).expand(5, k))


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_latents_in_order_of_size_are_the_worst_case_and_still_exact(path: str, order: str) -> None:
    bias_C = torch.arange(1.0, 2001.0)
    if order == "falling":
        bias_C = bias_C.flip(0)
    rows = encode_topk(torch.zeros(3, 2), torch.ones(2000, 2), bias_C, 40)
    first = 1960 if order == "rising" else 0
    assert torch.equal(rows.indices.view(3, 40), torch.arange(first, first + 40, dtype=torch.int32).expand(3, 40))


def test_no_tokens_and_no_positives_give_empty_rows(path: str) -> None:
    assert encode_topk(torch.zeros(0, 3), torch.ones(5, 3), torch.zeros(5), 2).indptr.tolist() == [0]
    assert encode_topk(torch.ones(4, 3), -torch.ones(5, 3), torch.zeros(5), 2).indptr.tolist() == [0] * 5


def test_the_set_is_right_outside_of_the_error_band(path: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x_ND, w_CD = torch.randn(101, 57, generator=generator), torch.randn(3001, 57, generator=generator)
    rows = encode_topk(x_ND, w_CD, torch.zeros(3001), 16)
    u_NC = x_ND.double() @ w_CD.double().T
    band_N1 = (57 * 2.0**-24 * (x_ND.abs() @ w_CD.abs().T)).amax(dim=1, keepdim=True)
    edge_N1 = u_NC.topk(16, dim=1).values[:, -1:]
    found_NC = torch.zeros_like(u_NC, dtype=torch.bool).scatter(1, rows.indices.view(101, 16).long(), True)
    assert found_NC[u_NC > edge_N1 + 2 * band_N1].all()
    assert not found_NC[u_NC < edge_N1 - 2 * band_N1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_count_as_their_fp32_values(path: str, same: Same, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x_ND, w_CD = torch.randn(41, 33, generator=generator), torch.randn(777, 33, generator=generator).to(dtype)
    assert same(encode_topk(x_ND, w_CD, torch.zeros(777), 9), encode_topk(x_ND, w_CD.float(), torch.zeros(777), 9))


def test_split_tokens_and_repeated_calls_give_the_same_rows(path: str, small_integers: Integers, same: Same) -> None:
    x_ND, w_CD, bias_C = small_integers(2100, 5), small_integers(170, 5), torch.zeros(170)
    whole = encode_topk(x_ND, w_CD, bias_C, 6, signed=True)
    parts = [encode_topk(part_ND, w_CD, bias_C, 6, signed=True) for part_ND in x_ND.split(333)]
    assert same(concatenate(parts), whole)
    assert all(same(encode_topk(x_ND, w_CD, bias_C, 6, signed=True), whole) for _ in range(3))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.TILED])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
@pytest.mark.parametrize("signed", [False, True])
def test_a_product_that_is_not_finite_is_reported(path: str, backend: Backend, damage: float, signed: bool) -> None:
    w_CD = torch.ones(300, 4)
    w_CD[:200] = damage
    with pytest.raises(ContractError, match=r"row 0 .*x is finite"):
        encode_topk(torch.ones(9, 4), w_CD, torch.zeros(300), 3, signed=signed, backend=backend)


@pytest.mark.parametrize("k", [0, -1, 6, True, 2.0])
def test_k_outside_of_the_latents_is_refused(k: int) -> None:
    with pytest.raises(ContractError, match="from 1 to the 5 latents"):
        encode_topk(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(5), k)
