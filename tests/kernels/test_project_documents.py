"""Letters: N tokens, S documents, D model width, C latents."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, ContractError, SparseRows, project
from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.project import project_documents
from gradsae_kernels.sparse_rows import row_of_entry
from tests.kernels.paths import backend_of, every_path, moved, ragged_rows, same_bits_path

Integers = Callable[..., Tensor]
Same = Callable[[SparseRows, SparseRows], bool]

ROWS = SparseRows(  # three tokens; latent 1 is active in all of them
    torch.tensor([0, 2, 3, 5]),
    torch.tensor([1, 3, 1, 0, 1], dtype=torch.int32),
    torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
)


def integer_rows(num_rows: int, num_latents: int) -> SparseRows:
    rows = ragged_rows(num_rows, num_latents)
    return rows._replace(values=torch.arange(len(rows.values)).remainder(3).float() + 1)


@every_path
@pytest.mark.parametrize("document_ptr", [[0, 9], [0, 0, 2, 2, 3, 9, 9], list(range(10))])
@pytest.mark.parametrize(("d", "c"), [(1, 1), (17, 33), (300, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_path_equals_the_oracle_on_exact_numbers(
    path: str,
    small_integers: Integers,
    same: Same,
    poisoned: None,
    document_ptr: list[int],
    d: int,
    c: int,
    dtype: torch.dtype,
    weighted: bool,
) -> None:
    backend, device = backend_of(path)
    rows, ptr = moved(integer_rows(9, c), device), torch.tensor(document_ptr, device=device)
    grad_ND, w_CD = small_integers(9, d).to(device, dtype), small_integers(c, d).to(device, dtype)
    weight_N = small_integers(9).to(device) if weighted else None
    found = project_documents(rows, grad_ND, w_CD, ptr, token_weight_N=weight_N, backend=backend)
    assert same(found, project_documents(rows, grad_ND, w_CD, ptr, token_weight_N=weight_N, backend=Backend.REFERENCE))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.TILED])
def test_a_document_adds_up_the_influence_of_its_tokens(backend: Backend) -> None:
    grad_ND, w_CD = torch.tensor([[1.0], [10.0], [100.0]]), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    ptr, weight_N = torch.tensor([0, 2, 2, 3]), torch.tensor([1.0, 0.5, 2.0])
    found = project_documents(ROWS, grad_ND, w_CD, ptr, token_weight_N=weight_N, backend=backend)
    assert found.indptr.tolist() == [0, 2, 2, 4]
    assert found.indices.tolist() == [1, 3, 0, 1]
    assert found.values.tolist() == [1 * 2 + 0.5 * 3 * 20, 2 * 4, 2 * 4 * 100, 2 * 5 * 200]


@every_path
def test_sums_are_those_of_the_projections_up_to_fp32_rounding(path: str) -> None:
    backend, device = backend_of(path)
    generator = torch.Generator().manual_seed(3)
    rows, ptr = ragged_rows(24, 40), torch.tensor([0, 5, 5, 24])
    grad_ND, w_CD = torch.randn(24, 577, generator=generator), torch.randn(40, 577, generator=generator)
    found = project_documents(moved(rows, device), grad_ND.to(device), w_CD.to(device), ptr.to(device), backend=backend)
    document = torch.bucketize(row_of_entry(rows), ptr[1:], right=True)
    sums_SC, size_SC, truth_SC = torch.zeros(3, 3, 40, dtype=torch.float64)
    at = (document, rows.indices.long())
    pair = (row_of_entry(rows), rows.indices.long())
    sums_SC.index_put_(at, (rows.values * project(rows, grad_ND, w_CD)).double(), accumulate=True)
    truth_SC.index_put_(at, rows.values * (grad_ND.double() @ w_CD.double().T)[pair], accumulate=True)
    size_SC.index_put_(at, (rows.values.abs() * (grad_ND.abs() @ w_CD.abs().T)[pair]).double(), accumulate=True)
    dense_SC = torch.zeros(3, 40, dtype=torch.float64)
    dense_SC[row_of_entry(found), found.indices.long().cpu()] = found.values.double().cpu()
    bound_SC = (577 + 24) * 2.0**-24 * size_SC
    assert ((dense_SC - truth_SC).abs() <= bound_SC).all()
    assert ((dense_SC - sums_SC).abs() <= 2 * bound_SC).all()
    assert torch.equal(dense_SC != 0, size_SC != 0)


@same_bits_path
def test_a_document_is_the_same_bit_by_bit_alone_among_others_and_again(path: str, same: Same) -> None:
    backend, device = backend_of(path)
    generator = torch.Generator().manual_seed(3)
    rows = moved(ragged_rows(30, 20), device)
    grad_ND, w_CD = torch.randn(30, 45, generator=generator), torch.randn(20, 45, generator=generator)
    grad_ND, w_CD, ptr = grad_ND.to(device), w_CD.to(device), torch.tensor([0, 7, 19, 30], device=device)
    whole = project_documents(rows, grad_ND, w_CD, ptr, backend=backend)
    assert same(project_documents(rows, grad_ND, w_CD, ptr, backend=backend), whole)
    begin, end = rows.indptr[7], rows.indptr[19]
    middle = SparseRows(rows.indptr[7:20] - begin, rows.indices[begin:end], rows.values[begin:end])
    alone = project_documents(middle, grad_ND[7:19], w_CD, ptr[1:3] - 7, backend=backend)
    first, last = whole.indptr[1], whole.indptr[2]
    assert same(alone, SparseRows(alone.indptr, whole.indices[first:last], whole.values[first:last]))


@every_path
def test_a_sum_that_is_exactly_zero_is_no_entry(path: str) -> None:
    backend, device = backend_of(path)
    grad_ND = torch.tensor([[1.0], [-1.0], [1.0]], device=device)
    weight_N = torch.tensor([3.0, 1.0, 0.0], device=device)
    found = project_documents(
        moved(ROWS, device),
        grad_ND,
        torch.ones(4, 1, device=device),
        torch.tensor([0, 3], device=device),
        token_weight_N=weight_N,
        backend=backend,
    )
    assert found.indptr.tolist() == [0, 1]
    assert found.indices.tolist() == [3]
    assert found.values.tolist() == [6.0]


@every_path
def test_a_decoder_row_that_is_not_a_number_shows(path: str) -> None:
    backend, device = backend_of(path)
    w_CD = torch.ones(4, 2, device=device)
    w_CD[1, 0] = torch.nan
    ptr = torch.tensor([0, 2, 3], device=device)
    found = project_documents(moved(ROWS, device), torch.ones(3, 2, device=device), w_CD, ptr, backend=backend)
    assert found.indices.tolist() == [1, 3, 0, 1]
    assert found.values.isnan().tolist() == [True, False, False, True]


@every_path
@pytest.mark.parametrize("document_ptr", [[0], [0, 0, 0]])
def test_no_tokens_make_empty_documents(path: str, document_ptr: list[int]) -> None:
    backend, device = backend_of(path)
    rows, ptr = moved(ragged_rows(0, 4), device), torch.tensor(document_ptr, device=device)
    for chosen in (backend, Backend.REFERENCE):
        found = project_documents(
            rows, torch.ones(0, 2, device=device), torch.ones(4, 2, device=device), ptr, backend=chosen
        )
        assert found.indptr.tolist() == [0] * len(document_ptr)
        assert [part.dtype for part in found] == [torch.int64, torch.int32, torch.float32]
        assert len(found.indices) == len(found.values) == 0


@pytest.mark.parametrize(
    ("document_ptr", "message"),
    [
        (torch.tensor([0, 2]), "got 0 to 2; expected 0 to 3"),
        (torch.tensor([1, 3]), "got 1 to 3; expected 0 to 3"),
        (torch.tensor([], dtype=torch.int64), "got nothing; expected 0 to 3"),
        (torch.tensor([0, 2, 1, 3]), "it falls"),
        (torch.tensor([0, 3], dtype=torch.int32), "expected an int64 vector"),
        (torch.tensor([[0, 3]]), "expected an int64 vector"),
    ],
)
def test_documents_that_do_not_cover_the_tokens_are_refused(document_ptr: Tensor, message: str) -> None:
    with pytest.raises(ContractError, match=f"document_ptr: .*{message}"):
        project_documents(ROWS, torch.ones(3, 2), torch.ones(4, 2), document_ptr)


def test_weights_values_and_gradients_must_be_finite_numbers() -> None:
    ptr, ones_ND, w_CD = torch.tensor([0, 3]), torch.ones(3, 2), torch.ones(4, 2)
    with pytest.raises(ContractError, match="token_weight_N: entry 1"):
        project_documents(ROWS, ones_ND, w_CD, ptr, token_weight_N=torch.tensor([1.0, torch.inf, 1.0]))
    with pytest.raises(ContractError, match="token_weight_N: got"):
        project_documents(ROWS, ones_ND, w_CD, ptr, token_weight_N=torch.ones(5))
    with pytest.raises(ContractError, match=r"rows\.values: entry 0"):
        project_documents(ROWS._replace(values=torch.full((5,), torch.nan)), ones_ND, w_CD, ptr)
    with pytest.raises(ContractError, match="grad_ND: row 0"):
        project_documents(ROWS, torch.full((3, 2), torch.nan), w_CD, ptr)


def test_the_triton_path_launches_one_kernel_for_all_documents(triton_device: str) -> None:
    rows, ptr = moved(ROWS, triton_device), torch.tensor([0, 1, 3], device=triton_device)
    grad_ND, w_CD = torch.ones(3, 2, device=triton_device), torch.ones(4, 2, device=triton_device)
    before = LAUNCHES["project_documents"], LAUNCHES["project"]
    project_documents(rows, grad_ND, w_CD, ptr, backend=Backend.TRITON)
    assert (LAUNCHES["project_documents"], LAUNCHES["project"]) == (before[0] + 1, before[1])
