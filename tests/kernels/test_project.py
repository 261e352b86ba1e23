"""Letters: N tokens, D model width, C latents."""

import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, encode_topk, project
from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.project import hot_latents
from gradsae_kernels.sparse_rows import row_of_entry
from tests.kernels.paths import backend_of, every_path, moved, ragged_rows, same_bits_path

Integers = Callable[..., Tensor]


@every_path
@pytest.mark.parametrize(("n", "d", "c"), [(0, 3, 4), (1, 1, 1), (5, 17, 33), (9, 300, 65), (70, 9, 257)])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_every_path_equals_the_oracle_on_exact_numbers(
    path: str,
    small_integers: Integers,
    poisoned: None,
    n: int,
    d: int,
    c: int,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
) -> None:
    backend, device = backend_of(path)
    rows = moved(ragged_rows(n, c), device)
    grad_ND, w_CD = small_integers(n, d).to(device, grad_dtype), small_integers(c, d).to(device, dtype)
    projections = project(rows, grad_ND, w_CD, backend=backend)
    assert projections.dtype == torch.float32
    assert torch.equal(projections, project(rows, grad_ND, w_CD, backend=Backend.REFERENCE))


@every_path
def test_no_worse_than_fp32_against_fp64(path: str) -> None:
    backend, device = backend_of(path)
    generator = torch.Generator().manual_seed(2)
    rows, grad_ND = ragged_rows(30, 90), torch.randn(30, 577, generator=generator)
    w_CD = torch.randn(90, 577, generator=generator)
    found = project(moved(rows, device), grad_ND.to(device), w_CD.to(device), backend=backend).cpu()
    row, latent = row_of_entry(rows), rows.indices.long()
    truth = (grad_ND.double() @ w_CD.double().T)[row, latent]
    size = (grad_ND.abs() @ w_CD.abs().T)[row, latent]
    assert ((found - truth).abs() <= 577 * 2.0**-24 * size).all()


@same_bits_path
def test_a_pair_is_the_same_bit_by_bit_however_the_rows_are_split(path: str) -> None:
    backend, device = backend_of(path)
    generator = torch.Generator().manual_seed(2)
    x_ND, grad_ND = torch.randn(2, 103, 300, generator=generator).to(device)
    w_CD = torch.randn(600, 300, generator=generator).to(device)
    rows = encode_topk(x_ND, w_CD, torch.zeros(600, device=device), 7, backend=Backend.TILED)
    whole = project(rows, grad_ND, w_CD, backend=backend)
    cut = rows.indptr[57]
    head = SparseRows(rows.indptr[:58], rows.indices[:cut], rows.values[:cut])
    tail = SparseRows(rows.indptr[57:] - cut, rows.indices[cut:], rows.values[cut:])
    parts = [
        project(head, grad_ND[:57], w_CD, backend=backend),
        project(tail, grad_ND[57:], w_CD, backend=backend),
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(project(rows, grad_ND, w_CD, backend=backend), whole) for _ in range(3))


def test_with_triton_a_pair_is_the_same_bit_by_bit_whatever_else_its_row_holds(triton_device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rows, grad_ND = moved(ragged_rows(9, 40), triton_device), torch.randn(9, 300, generator=generator)
    w_CD, grad_ND = torch.randn(40, 300, generator=generator).to(triton_device), grad_ND.to(triton_device)
    whole = project(rows, grad_ND, w_CD, backend=Backend.TRITON)
    for pair, row in list(enumerate(row_of_entry(rows).tolist()))[::7]:
        lonely = SparseRows(torch.tensor([0, 1], device=w_CD.device), rows.indices[pair : pair + 1], whole.new_ones(1))
        alone = project(lonely, grad_ND[row : row + 1], w_CD, backend=Backend.TRITON)
        assert torch.equal(alone, whole[pair : pair + 1])


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


@every_path
def test_one_row_of_thousands_of_pairs_is_whole(path: str) -> None:
    backend, device = backend_of(path)
    latents = torch.arange(3001, device=device)
    rows = SparseRows(torch.tensor([0, 0, 3001], device=device), latents.to(torch.int32), torch.ones(3001).to(device))
    w_CD, grad_ND = latents.float()[:, None].expand(3001, 3).contiguous(), torch.ones(2, 3, device=device)
    assert torch.equal(project(rows, grad_ND, w_CD, backend=backend), 3 * latents.float())


@every_path
def test_a_gradient_need_not_be_contiguous(path: str, small_integers: Integers) -> None:
    backend, device = backend_of(path)
    rows, grad_DN, w_CD = ragged_rows(7, 12), small_integers(5, 7).to(device), small_integers(12, 5).to(device)
    found = project(moved(rows, device), grad_DN.T, w_CD, backend=backend)
    assert torch.equal(found, (grad_DN.T @ w_CD.T)[row_of_entry(rows), rows.indices.long()])


@every_path
def test_a_gradient_that_is_not_finite_is_refused(path: str) -> None:
    backend, device = backend_of(path)
    grad_ND = torch.ones(5, 3, device=device)
    grad_ND[2, 1] = torch.nan
    with pytest.raises(ContractError, match="grad_ND: row 2 holds NaN"):
        project(moved(ragged_rows(5, 7), device), grad_ND, torch.ones(7, 3, device=device), backend=backend)


def test_rows_and_gradients_must_be_equally_many() -> None:
    with pytest.raises(ContractError, match="4 rows and 5 sparse rows"):
        project(ragged_rows(5, 7), torch.ones(4, 3), torch.ones(7, 3))


def test_the_triton_path_launches_its_kernel_and_no_other_path_does(triton_device: str) -> None:
    rows = moved(ragged_rows(5, 7), triton_device)
    grad_ND, w_CD = torch.ones(5, 3, device=triton_device), torch.ones(7, 3, device=triton_device)
    before = LAUNCHES["project"]
    project(rows, grad_ND, w_CD, backend=Backend.TILED)
    assert LAUNCHES["project"] == before
    project(rows, grad_ND, w_CD, backend=Backend.TRITON)
    assert LAUNCHES["project"] == before + 1


@pytest.mark.parametrize("path", ["compiled", "triton"], indirect=True)
def test_weights_past_two_to_the_31_elements_are_read_at_the_right_place(path: str, small_integers: Integers) -> None:
    backend, _ = backend_of(path)
    num_latents, width = 1_048_576, 3584
    w_CD = torch.empty(num_latents, width, dtype=torch.float16)  # 7.5 GB of addresses; only what is touched is memory
    latents = torch.tensor([3, num_latents - 9, num_latents - 1])
    w_rows, grad_ND = small_integers(3, width), small_integers(2, width)
    w_CD[latents] = w_rows.half()
    indices = latents.to(torch.int32)[[0, 1, 2, 1]]
    rows = SparseRows(torch.tensor([0, 3, 4]), indices, torch.ones(4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = project(rows, grad_ND, w_CD, backend=backend)
    assert torch.equal(found, torch.cat([w_rows @ grad_ND[0], w_rows[1:2] @ grad_ND[1]]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "a gigabyte: someone copied the weights"


@every_path
@pytest.mark.parametrize("hot_share", [0, 0.2, 0.4, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hot_latents_apart_give_the_same_on_exact_numbers(
    path: str,
    small_integers: Integers,
    poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
    hot_share: float,
    dtype: torch.dtype,
) -> None:
    backend, device = backend_of(path)
    monkeypatch.setattr(hot_latents, "TILE_ELEMENTS", 40)
    rows = moved(ragged_rows(40, 23), device)
    grad_ND, w_CD = small_integers(40, 6).to(device, dtype), small_integers(23, 6).to(device, dtype)
    expected = project(rows, grad_ND, w_CD, backend=Backend.REFERENCE)
    assert torch.equal(project(rows, grad_ND, w_CD, hot_share=hot_share, backend=backend), expected)


def test_hot_latents_and_no_others_are_multiplied_densely_in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_latents, "TILE_ELEMENTS", 40)
    rows, multiply = ragged_rows(40, 23), hot_latents._multiply
    grad_ND = torch.arange(40.0)[:, None].expand(40, 6).contiguous()
    w_CD = torch.arange(23.0)[:, None].expand(23, 6).contiguous()
    seen: list[tuple[Any, Any]] = []

    def watched(grad_ND: Tensor, w_TD: Tensor) -> Tensor:
        assert max(grad_ND.numel(), w_TD.numel(), len(grad_ND) * len(w_TD)) <= 40
        seen.append((grad_ND[:, 0].tolist(), w_TD[:, 0].tolist()))
        return multiply(grad_ND, w_TD)

    monkeypatch.setattr(hot_latents, "_multiply", watched)
    project(rows, grad_ND, w_CD, hot_share=0.25)
    hot = (torch.bincount(rows.indices, minlength=23) > 10).nonzero()[:, 0].tolist()
    assert 1 < len(hot) < 23
    found = sorted((token, latent) for tokens, latents in seen for token in tokens for latent in latents)
    assert found == [(token, latent) for token in range(40) for latent in hot]


def test_no_tokens_have_no_hot_latents() -> None:
    assert project(ragged_rows(0, 5), torch.ones(0, 3), torch.ones(5, 3), hot_share=0.0).shape == (0,)


@pytest.mark.parametrize("hot_share", [-0.1, 1, 1.5, torch.nan, True, "0.5"])
def test_a_hot_share_that_can_have_no_effect_is_refused(hot_share: Any) -> None:
    with pytest.raises(ContractError, match="hot_share: got"):
        project(ragged_rows(5, 7), torch.ones(5, 3), torch.ones(7, 3), hot_share=hot_share)


def test_the_oracle_takes_no_hot_share() -> None:
    with pytest.raises(ContractError, match="leave it out"):
        project(ragged_rows(5, 7), torch.ones(5, 3), torch.ones(7, 3), hot_share=0.5, backend=Backend.REFERENCE)
