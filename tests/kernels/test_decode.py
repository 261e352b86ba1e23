"""Letters: N tokens, D model width, C latents."""

import resource
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, decode, encode_topk
from gradsae_kernels.launches import LAUNCHES
from tests.kernels.paths import backend_of, every_path, moved, ragged_rows, same_bits_path

Integers = Callable[..., Tensor]


@every_path
@pytest.mark.parametrize(("n", "d", "c"), [(0, 3, 4), (1, 1, 1), (5, 17, 33), (6, 300, 9), (12, 9, 57)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_path_equals_the_oracle_on_exact_numbers(
    path: str,
    small_integers: Integers,
    poisoned: None,
    n: int,
    d: int,
    c: int,
    dtype: torch.dtype,
    with_bias: bool,
) -> None:
    backend, device = backend_of(path)
    rows, w_CD = ragged_rows(n, c), small_integers(c, d).to(device, dtype)
    rows = moved(rows._replace(values=small_integers(len(rows.values)) + 5), device)
    bias_D = small_integers(d).to(device) if with_bias else None
    decoded_ND = decode(rows, w_CD, bias_D, backend=backend)
    assert decoded_ND.dtype == torch.float32
    assert torch.equal(decoded_ND, decode(rows, w_CD, bias_D, backend=Backend.REFERENCE))


@every_path
def test_no_worse_than_fp32_against_fp64(path: str) -> None:
    backend, device = backend_of(path)
    generator = torch.Generator().manual_seed(2)
    x_ND, w_CD = torch.randn(13, 77, generator=generator), torch.randn(300, 77, generator=generator)
    rows = encode_topk(x_ND, w_CD, torch.zeros(300), 19)
    a_NC = torch.zeros(13, 300, dtype=torch.float64)
    a_NC.scatter_(1, rows.indices.view(13, 19).long(), rows.values.view(13, 19).double())
    decoded_ND = decode(moved(rows, device), w_CD.to(device), backend=backend).cpu()
    error_ND = (decoded_ND - a_NC @ w_CD.double()).abs()
    assert (error_ND <= 20 * 2.0**-24 * (a_NC.abs() @ w_CD.double().abs())).all()


@same_bits_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_bit_by_bit_however_the_rows_are_split(
    path: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    backend, device = backend_of(path)
    generator = torch.Generator().manual_seed(2)
    x_ND, w_CD = torch.randn(23, 45, generator=generator), torch.randn(600, 45, generator=generator).to(dtype)
    rows, w_CD = moved(encode_topk(x_ND, w_CD, torch.zeros(600), 13), device), w_CD.to(device)
    whole_ND = decode(rows, w_CD, backend=backend)
    monkeypatch.setattr("gradsae_kernels.gather.PIECE_ELEMENTS", 45 * 8)
    cut = rows.indptr[7]
    head = SparseRows(rows.indptr[:8], rows.indices[:cut], rows.values[:cut])
    tail = SparseRows(rows.indptr[7:] - cut, rows.indices[cut:], rows.values[cut:])
    parts = [decode(head, w_CD, backend=backend), decode(tail, w_CD, backend=backend)]
    assert torch.equal(torch.cat(parts), whole_ND)
    assert torch.equal(decode(rows, w_CD, backend=backend), whole_ND)


@same_bits_path
def test_a_row_adds_up_from_the_bias_on_in_the_order_of_latents(path: str) -> None:
    backend, device = backend_of(path)
    large, small = 2.0**25, 1.0  # in fp32, large + 2 * small is large: with the bias last, say, this would be 4
    w_CD = torch.tensor([[small], [large], [small], [-large], [small], [small], [small]], device=device)
    rows = SparseRows(torch.tensor([0, 7]), torch.arange(7, dtype=torch.int32), torch.ones(7))
    assert decode(moved(rows, device), w_CD, torch.ones(1, device=device), backend=backend).item() == 3.0


def test_values_that_are_not_finite_are_refused() -> None:
    rows = SparseRows(torch.tensor([0, 2]), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1.0, torch.nan]))
    with pytest.raises(ContractError, match=r"rows\.values: entry 1"):
        decode(rows, torch.ones(2, 3))


def test_the_triton_path_launches_its_kernel_and_no_other_path_does(triton_device: str) -> None:
    rows, w_CD = moved(ragged_rows(5, 7), triton_device), torch.ones(7, 3, device=triton_device)
    before = LAUNCHES["decode"]
    decode(rows, w_CD, backend=Backend.TILED)
    assert LAUNCHES["decode"] == before
    decode(rows, w_CD, backend=Backend.TRITON)
    assert LAUNCHES["decode"] == before + 1


@pytest.mark.parametrize("path", ["compiled", "triton"], indirect=True)
def test_weights_past_two_to_the_31_elements_are_read_at_the_right_place(path: str, small_integers: Integers) -> None:
    backend, _ = backend_of(path)
    num_latents, width = 1_048_576, 3584
    w_CD = torch.empty(num_latents, width, dtype=torch.float16)  # 7.5 GB of addresses; only what is touched is memory
    latents = torch.tensor([3, num_latents - 9, num_latents - 1])
    w_rows = small_integers(3, width)
    w_CD[latents] = w_rows.half()
    rows = SparseRows(torch.tensor([0, 1, 3]), latents.to(torch.int32), torch.tensor([1.0, 2.0, 3.0]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found_ND = decode(rows, w_CD, backend=backend)
    assert torch.equal(found_ND, torch.stack([w_rows[0], 2 * w_rows[1] + 3 * w_rows[2]]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "a gigabyte: someone copied the weights"
