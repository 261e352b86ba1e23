"""Letters: N tokens, D model width, C latents."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, decode, encode_topk

Integers = Callable[..., Tensor]


@pytest.mark.parametrize(("n", "d", "c", "k"), [(0, 3, 4, 1), (1, 1, 1, 1), (5, 17, 33, 33), (70, 9, 257, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_tiled_equals_the_oracle_on_exact_numbers(
    path: str,
    small_integers: Integers,
    poisoned: None,
    n: int,
    d: int,
    c: int,
    k: int,
    dtype: torch.dtype,
    with_bias: bool,
) -> None:
    w_CD = small_integers(c, d).to(dtype)
    rows = encode_topk(small_integers(n, d), w_CD, small_integers(c), k, signed=True)
    bias_D = small_integers(d) if with_bias else None
    decoded_ND = decode(rows, w_CD, bias_D, backend=Backend.TILED)
    assert decoded_ND.dtype == torch.float32
    assert torch.equal(decoded_ND, decode(rows, w_CD, bias_D, backend=Backend.REFERENCE))


def test_no_worse_than_fp32_against_fp64(path: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x_ND, w_CD = torch.randn(53, 77, generator=generator), torch.randn(300, 77, generator=generator)
    rows = encode_topk(x_ND, w_CD, torch.zeros(300), 19)
    a_NC = torch.zeros(53, 300, dtype=torch.float64)
    a_NC.scatter_(1, rows.indices.view(53, 19).long(), rows.values.view(53, 19).double())
    error_ND = (decode(rows, w_CD) - a_NC @ w_CD.double()).abs()
    assert (error_ND <= 20 * 2.0**-24 * (a_NC.abs() @ w_CD.double().abs())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_bit_by_bit_however_the_rows_are_split(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    x_ND, w_CD = torch.randn(203, 45, generator=generator), torch.randn(600, 45, generator=generator).to(dtype)
    rows = encode_topk(x_ND, w_CD, torch.zeros(600), 13)
    whole_ND = decode(rows, w_CD)
    monkeypatch.setattr("gradsae_kernels.gather.PIECE_ELEMENTS", 45 * 8)
    cut = rows.indptr[57]
    head = SparseRows(rows.indptr[:58], rows.indices[:cut], rows.values[:cut])
    tail = SparseRows(rows.indptr[57:] - cut, rows.indices[cut:], rows.values[cut:])
    assert torch.equal(torch.cat([decode(head, w_CD), decode(tail, w_CD)]), whole_ND)


def test_values_that_are_not_finite_are_refused() -> None:
    rows = SparseRows(torch.tensor([0, 2]), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1.0, torch.nan]))
    with pytest.raises(ContractError, match=r"rows\.values: entry 1"):
        decode(rows, torch.ones(2, 3))
