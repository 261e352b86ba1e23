"""Letters: N tokens, D model width, C latents."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, BackendUnavailable, ContractError, SparseRows, encode_groupmax
from gradsae_kernels.encode_groupmax import tiled
from gradsae_kernels.sparse_rows import concatenate

Integers = Callable[..., Tensor]
Same = Callable[[SparseRows, SparseRows], bool]

RAGGED = [(1, 1, 1, 1), (3, 5, 17, 17), (37, 9, 63, 7), (130, 24, 1280, 5), (2, 7, 1000, 1), (1030, 3, 129, 43)]
BACKENDS = [Backend.REFERENCE, Backend.TILED]


@pytest.mark.parametrize(("n", "d", "c", "groups"), RAGGED)
@pytest.mark.parametrize("width", [64, 192, 2**20])
def test_tiled_equals_the_oracle_ties_included(
    small_integers: Integers,
    same: Same,
    poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    d: int,
    c: int,
    groups: int,
    width: int,
) -> None:
    monkeypatch.setattr(tiled, "tile_width", lambda _rows, w_CD: min(width, len(w_CD)))
    x_ND, w_CD, bias_C = small_integers(n, d), small_integers(c, d), small_integers(c)
    found = encode_groupmax(x_ND, w_CD, bias_C, groups)
    assert same(found, encode_groupmax(x_ND, w_CD, bias_C, groups, backend=Backend.REFERENCE))
    assert torch.all(found.values > 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_group_keeps_the_first_of_its_largest_latents_if_positive(backend: Backend) -> None:
    x_ND = torch.tensor([[1.0, 3.0, 3.0, -1.0, -2.0, 0.0, 5.0, 5.0, 5.0]])

    def encoded(groups: int) -> list[list[float]]:
        rows = encode_groupmax(x_ND, torch.eye(9), torch.zeros(9), groups, backend=backend)
        return [rows.indices.tolist(), rows.values.tolist()]

    assert encoded(1) == [[6], [5.0]]
    assert encoded(3) == [[1, 6], [3.0, 5.0]]
    assert encoded(9) == [[0, 1, 2, 6, 7, 8], [1.0, 3.0, 3.0, 5.0, 5.0, 5.0]], "a group of one latent is relu"


def test_equal_latents_in_two_tiles_go_to_the_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "tile_width", lambda _rows, _w_CD: 64)
    rows = encode_groupmax(torch.ones(3, 2), torch.ones(1000, 2), torch.zeros(1000), 2, backend=Backend.TILED)
    assert rows.indices.tolist() == [0, 500] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_and_no_positives_give_empty_rows(backend: Backend) -> None:
    none = encode_groupmax(torch.zeros(0, 3), torch.ones(6, 3), torch.zeros(6), 2, backend=backend)
    assert none.indptr.tolist() == [0]
    zeros = encode_groupmax(torch.ones(4, 3), torch.zeros(6, 3), torch.zeros(6), 2, backend=backend)
    assert zeros.indptr.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_count_as_their_fp32_values(same: Same, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x_ND, w_CD = torch.randn(41, 33, generator=generator), torch.randn(776, 33, generator=generator).to(dtype)
    zeros = torch.zeros(776)
    assert same(encode_groupmax(x_ND, w_CD, zeros, 8), encode_groupmax(x_ND, w_CD.float(), zeros, 8))


def test_split_tokens_give_the_same_rows(small_integers: Integers, same: Same) -> None:
    x_ND, w_CD, bias_C = small_integers(2100, 5), small_integers(168, 5), torch.zeros(168)
    parts = [encode_groupmax(part_ND, w_CD, bias_C, 6) for part_ND in x_ND.split(333)]
    assert same(concatenate(parts), encode_groupmax(x_ND, w_CD, bias_C, 6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_a_product_that_is_not_finite_is_reported(backend: Backend, damage: float) -> None:
    w_CD = torch.ones(300, 4)
    w_CD[217] = damage
    with pytest.raises(ContractError, match=r"row 0 .*x is finite"):
        encode_groupmax(torch.ones(9, 4), w_CD, torch.zeros(300), 3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_infinity_is_never_the_largest_and_is_no_harm(backend: Backend) -> None:
    w_CD = torch.ones(6, 4)
    w_CD[1] = -torch.inf
    rows = encode_groupmax(torch.ones(1, 4), w_CD, torch.zeros(6), 3, backend=backend)
    assert rows.indices.tolist() == [0, 2, 4]


@pytest.mark.parametrize("groups", [0, -1, 4, 7, True, 2.0])
def test_groups_that_do_not_divide_the_latents_are_refused(groups: int) -> None:
    with pytest.raises(ContractError, match="divides the 6 latents"):
        encode_groupmax(torch.ones(2, 3), torch.ones(6, 3), torch.zeros(6), groups)


def test_a_backend_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no fused kernel"):
        encode_groupmax(torch.ones(2, 3), torch.ones(6, 3), torch.zeros(6), 2, backend=Backend.TRITON)


def test_nan_in_x_is_refused_with_its_row() -> None:
    x_ND = torch.ones(5, 3)
    x_ND[3, 1] = torch.nan
    with pytest.raises(ContractError, match="row 3"):
        encode_groupmax(x_ND, torch.ones(6, 3), torch.zeros(6), 2)
