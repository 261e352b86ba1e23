"""Letters: N tokens, D model width, C latents."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, BackendUnavailable, ContractError, SparseRows, decode, encode_matching_pursuit
from gradsae_kernels.encode_matching_pursuit import tiled
from gradsae_kernels.sparse_rows import concatenate, row_of_entry

Integers = Callable[..., Tensor]
Same = Callable[[SparseRows, SparseRows], bool]

BACKENDS = [Backend.REFERENCE, Backend.TILED]
STOPS: list[dict[str, Any]] = [
    {"max_iterations": 1},
    {"max_iterations": 9},
    {"max_iterations": 9, "stop_on_repeat": False},
    {"max_iterations": 9, "residual_threshold": 2.0, "stop_on_repeat": False},
    {"max_iterations": 9, "residual_threshold": 100.0},
]


def unit_rows(num_latents: int, width: int, seed: int = 5) -> Tensor:
    w_CD = torch.randn(num_latents, width, generator=torch.Generator().manual_seed(seed))
    return w_CD / w_CD.norm(dim=1, keepdim=True)


def exact_frame(num_latents: int, blocks: int) -> Tensor:
    """Rows of norm 1 that repeat and oppose each other, all multiples of a half: nine steps from integers are exact."""
    corners = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    frame = torch.cat([torch.block_diag(*[part] * blocks) for part in (corners, torch.eye(4))])
    every = torch.cat([frame, -frame])
    order = torch.randint(len(every), (num_latents,), generator=torch.Generator().manual_seed(3))
    return every[order].contiguous()


def plain_loop(x_D: Tensor, w_CD: Tensor, steps: int, threshold: float, stop_on_repeat: bool) -> dict[int, float]:
    """One token, in float64."""
    residual_D, found = x_D.double(), dict[int, float]()
    for _ in range(steps):
        product_C = w_CD.double() @ residual_D
        latent = int(product_C.argmax())
        value = float(product_C[latent])
        if value <= 0:
            break
        repeated = latent in found
        found[latent] = found.get(latent, 0.0) + value
        residual_D = residual_D - value * w_CD[latent].double()
        if (stop_on_repeat and repeated) or float(residual_D.norm()) < threshold:
            break
    return dict(sorted(found.items()))


@pytest.mark.parametrize("stops", STOPS, ids=str)
@pytest.mark.parametrize(("n", "c", "blocks"), [(1, 1, 1), (37, 64, 2), (130, 1000, 6), (1030, 130, 2)])
@pytest.mark.parametrize("width", [64, 2**20])
def test_tiled_equals_the_oracle_ties_included(
    small_integers: Integers,
    same: Same,
    poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
    stops: dict[str, Any],
    n: int,
    c: int,
    blocks: int,
    width: int,
) -> None:
    monkeypatch.setattr(tiled, "tile_width", lambda _rows, w_CD: min(width, len(w_CD)))
    monkeypatch.setattr(tiled, "FIRST_STEPS", 2)
    x_ND, w_CD = small_integers(n, 4 * blocks), exact_frame(c, blocks)
    found = encode_matching_pursuit(x_ND, w_CD, **stops)
    assert same(found, encode_matching_pursuit(x_ND, w_CD, backend=Backend.REFERENCE, **stops))
    assert torch.all(found.values > 0)


@pytest.mark.parametrize("stops", STOPS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_token_gets_what_a_loop_over_its_residual_gives(backend: Backend, stops: dict[str, Any]) -> None:
    x_ND, w_CD = 2 * torch.randn(40, 12, generator=torch.Generator().manual_seed(2)), unit_rows(50, 12)
    w_CD *= torch.linspace(0.6, 1.1, 50)[:, None]
    rows = encode_matching_pursuit(x_ND, w_CD, backend=backend, **stops)
    options = (stops.get("residual_threshold", 0.0), stops.get("stop_on_repeat", True))
    expected = [plain_loop(x_D, w_CD, stops["max_iterations"], *options) for x_D in x_ND]
    assert rows.indptr.diff().tolist() == [len(found) for found in expected]
    assert rows.indices.tolist() == [latent for found in expected for latent in found]
    values = torch.tensor([value for found in expected for value in found.values()])
    torch.testing.assert_close(rows.values, values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_stops_where_the_rules_say(backend: Backend) -> None:
    x_ND, w_CD = torch.tensor([[4.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.5, 0.0]])

    def encoded(steps: int, **stops: Any) -> list[list[float]]:
        rows = encode_matching_pursuit(x_ND, w_CD, steps, backend=backend, **stops)
        return [rows.indices.tolist(), rows.values.tolist()]

    assert encoded(1) == [[1], [2.0]]
    assert encoded(9) == [[1], [3.5]], "the step that takes a latent again still counts"
    assert encoded(4, stop_on_repeat=False) == [[0, 1], [1.0, 2.0 + 1.5 + 1.125]], "a tie on the way is for latent 1"
    assert encoded(9, residual_threshold=3.5) == [[1], [2.0]]
    assert encoded(9, residual_threshold=3.0) == [[1], [3.5]]
    assert encoded(9, residual_threshold=1e9) == [[1], [2.0]], "the first step is taken whatever the norm"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_orthonormal_basis_gives_the_positive_coordinates(backend: Backend) -> None:
    x_ND = torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    rows = encode_matching_pursuit(x_ND, torch.eye(3), 9, backend=backend)
    assert rows.indptr.tolist() == [0, 2, 2, 2]
    assert (rows.indices.tolist(), rows.values.tolist()) == ([0, 2], [3.0, 2.0])


def test_the_residual_of_unit_rows_only_falls() -> None:
    x_ND, w_CD = torch.randn(30, 16, generator=torch.Generator().manual_seed(2)), unit_rows(200, 16)
    steps = [encode_matching_pursuit(x_ND, w_CD, count, stop_on_repeat=False) for count in (1, 2, 4, 8, 64)]
    norms = torch.stack([(x_ND - decode(rows, w_CD, torch.zeros(16))).norm(dim=1) for rows in steps])
    assert torch.all(norms.diff(dim=0) < 0)
    assert norms[-1].max() < 0.05 * x_ND.norm(dim=1).min()


def test_equal_latents_in_two_tiles_go_to_the_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "tile_width", lambda _rows, _w_CD: 64)
    w_CD = torch.zeros(1000, 2)
    w_CD[100:] = torch.tensor([0.5, 0.5])
    rows = encode_matching_pursuit(torch.ones(3, 2), w_CD, 1, backend=Backend.TILED)
    assert rows.indices.tolist() == [100] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_and_no_positives_give_empty_rows(backend: Backend) -> None:
    none = encode_matching_pursuit(torch.zeros(0, 3), torch.ones(6, 3), 2, backend=backend)
    assert none.indptr.tolist() == [0]
    zeros = encode_matching_pursuit(torch.ones(4, 3), -torch.ones(6, 3), 2, backend=backend)
    assert zeros.indptr.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_count_as_their_fp32_values(same: Same, dtype: torch.dtype) -> None:
    x_ND, w_CD = torch.randn(41, 32, generator=torch.Generator().manual_seed(5)), unit_rows(776, 32).to(dtype)
    assert same(encode_matching_pursuit(x_ND, w_CD, 20), encode_matching_pursuit(x_ND, w_CD.float(), 20))


@pytest.mark.parametrize("largest", [1024, 100])
def test_split_tokens_give_the_same_rows(
    small_integers: Integers, same: Same, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(tiled, "TILE_ELEMENTS", 9 * largest)
    x_ND, w_CD = small_integers(2100, 8), exact_frame(168, 2)
    parts = [encode_matching_pursuit(part_ND, w_CD, 9) for part_ND in x_ND.split(333)]
    assert same(concatenate(parts), encode_matching_pursuit(x_ND, w_CD, 9))


def test_values_do_not_depend_on_the_company_of_a_token(same: Same) -> None:
    x_ND, w_CD = torch.randn(64, 24, generator=torch.Generator().manual_seed(5)), unit_rows(300, 24)
    alone = [encode_matching_pursuit(x_D[None], w_CD, 20) for x_D in x_ND]
    assert same(concatenate(alone), encode_matching_pursuit(x_ND, w_CD, 20))


def test_a_long_pursuit_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more steps than columns at first, and more than there are latents."""
    x_ND, w_CD = torch.randn(5, 6, generator=torch.Generator().manual_seed(5)), 0.2 * unit_rows(20, 6)
    rows = encode_matching_pursuit(x_ND, w_CD, 700, stop_on_repeat=False)
    expected = [plain_loop(x_D, w_CD, 700, 0.0, False) for x_D in x_ND]
    dense_NC = torch.zeros(5, 20).index_put((row_of_entry(rows), rows.indices.long()), rows.values)
    for row_C, found in zip(dense_NC, expected, strict=True):
        exact_C = torch.zeros(20).index_put((torch.tensor(list(found)),), torch.tensor(list(found.values())))
        torch.testing.assert_close(row_C, exact_C, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_a_product_that_is_not_finite_is_reported(backend: Backend, damage: float) -> None:
    w_CD = torch.ones(300, 4)
    w_CD[217] = damage
    with pytest.raises(ContractError, match=r"row 0 .*x is finite"):
        encode_matching_pursuit(torch.ones(9, 4), w_CD, 3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_so_long_that_the_residual_grows_out_of_fp32_are_reported(backend: Backend) -> None:
    x_ND = torch.tensor([[0.0, 0.0], [-1.0, -1.0], [1.0, 2.0]])
    w_CD = torch.tensor([[50.0, 0.0], [0.0, 50.0], [-50.0, 0.0], [0.0, -50.0]])
    assert len(encode_matching_pursuit(x_ND, w_CD, 4, stop_on_repeat=False, backend=backend).values) > 0
    with pytest.raises(ContractError, match=r"row 1 .*rescale x"):
        encode_matching_pursuit(x_ND, w_CD, 90, stop_on_repeat=False, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_infinity_is_never_the_largest_and_is_no_harm(backend: Backend) -> None:
    w_CD = torch.full((6, 4), 0.25)
    w_CD[0] = -torch.inf
    x_ND = torch.cat([torch.ones(1, 4), torch.full((1, 4), 1e-38)])
    rows = encode_matching_pursuit(x_ND, w_CD, 1, backend=backend)
    assert rows.indices.tolist() == [1, 1]


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, None])
def test_a_number_of_steps_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(ContractError, match="max_iterations: got"):
        encode_matching_pursuit(torch.ones(2, 3), torch.ones(6, 3), steps)


@pytest.mark.parametrize("threshold", [-1.0, torch.nan, torch.inf])
def test_a_threshold_that_is_no_norm_is_refused(threshold: float) -> None:
    with pytest.raises(ContractError, match="residual_threshold: got"):
        encode_matching_pursuit(torch.ones(2, 3), torch.ones(6, 3), 2, residual_threshold=threshold)


def test_a_backend_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no fused kernel"):
        encode_matching_pursuit(torch.ones(2, 3), torch.ones(6, 3), 2, backend=Backend.TRITON)


def test_nan_in_x_is_refused_with_its_row() -> None:
    x_ND = torch.ones(5, 3)
    x_ND[3, 1] = torch.nan
    with pytest.raises(ContractError, match="row 3"):
        encode_matching_pursuit(x_ND, torch.ones(6, 3), 2)
