"""Letters: N tokens, D model width, C latents."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, encode_topk, project
from gradsae_kernels.sparse_rows import row_of_entry

Integers = Callable[..., Tensor]


def ragged_rows(num_rows: int, num_latents: int) -> SparseRows:
    """Rows of very different length: empty ones, one with every latent, the rest in between."""
    generator = torch.Generator().manual_seed(11)
    share_N1 = torch.rand(num_rows, 1, generator=generator) ** 4
    active_NC = torch.rand(num_rows, num_latents, generator=generator) < share_N1
    active_NC[:: max(2, num_rows // 3)] = False
    active_NC[-1:] = True
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), active_NC.sum(dim=1).cumsum(dim=0)])
    indices = active_NC.nonzero()[:, 1].to(torch.int32)
    return SparseRows(indptr, indices, torch.randn(len(indices), generator=generator))


@pytest.mark.parametrize(("n", "d", "c"), [(0, 3, 4), (1, 1, 1), (5, 17, 33), (70, 9, 257), (300, 65, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiled_equals_the_oracle_on_exact_numbers(
    path: str, small_integers: Integers, poisoned: None, n: int, d: int, c: int, dtype: torch.dtype
) -> None:
    rows, grad_ND, w_CD = ragged_rows(n, c), small_integers(n, d), small_integers(c, d).to(dtype)
    projections = project(rows, grad_ND, w_CD, backend=Backend.TILED)
    assert projections.dtype == torch.float32
    assert torch.equal(projections, project(rows, grad_ND, w_CD, backend=Backend.REFERENCE))


def test_no_worse_than_fp32_against_fp64(path: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rows, grad_ND = ragged_rows(50, 90), torch.randn(50, 577, generator=generator)
    w_CD = torch.randn(90, 577, generator=generator)
    found = project(rows, grad_ND, w_CD)
    row, latent = row_of_entry(rows), rows.indices.long()
    truth = (grad_ND.double() @ w_CD.double().T)[row, latent]
    size = (grad_ND.abs() @ w_CD.abs().T)[row, latent]
    assert ((found - truth).abs() <= 577 * 2.0**-24 * size).all()


def test_a_pair_is_the_same_bit_by_bit_however_the_rows_are_split(small_integers: Integers) -> None:
    generator = torch.Generator().manual_seed(2)
    x_ND, grad_ND = torch.randn(2, 203, 45, generator=generator)
    w_CD = torch.randn(600, 45, generator=generator)
    rows = encode_topk(x_ND, w_CD, torch.zeros(600), 12)
    whole = project(rows, grad_ND, w_CD)
    cut = rows.indptr[57]
    head = SparseRows(rows.indptr[:58], rows.indices[:cut], rows.values[:cut])
    tail = SparseRows(rows.indptr[57:] - cut, rows.indices[cut:], rows.values[cut:])
    parts = [project(head, grad_ND[:57], w_CD), project(tail, grad_ND[57:], w_CD)]
    assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(project(rows, grad_ND, w_CD), whole) for _ in range(3))


def test_the_number_of_threads_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(2)
    rows, grad_ND = ragged_rows(203, 90), torch.randn(203, 45, generator=generator)
    w_CD = torch.randn(90, 45, generator=generator)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(project(rows, grad_ND, w_CD))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_one_row_longer_than_a_piece_is_whole(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsae_kernels.gather.PIECE_ELEMENTS", 64)
    rows, grad_ND, w_CD = ragged_rows(9, 40), torch.ones(9, 5), torch.arange(40.0)[:, None].expand(40, 5).bfloat16()
    expected = 5 * rows.indices.float()
    assert torch.equal(project(rows, grad_ND, w_CD.contiguous()), expected)


def test_rows_and_gradients_must_be_equally_many() -> None:
    with pytest.raises(ContractError, match="4 rows and 5 sparse rows"):
        project(ragged_rows(5, 7), torch.ones(4, 3), torch.ones(7, 3))
