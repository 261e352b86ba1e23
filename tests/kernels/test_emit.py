"""The GPU path of both encoders: every variant of a plan against the oracle, in the interpreter or on a GPU.

Letters: N tokens, D model width, C latents.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_kernels import (
    Backend,
    ContractError,
    EmitPlan,
    EmitVariant,
    SparseRows,
    choose_plan,
    encode_threshold,
    encode_topk,
    tune_plan,
)
from gradsae_kernels.emit.bins import Bins
from gradsae_kernels.emit.tune import candidates
from gradsae_kernels.encode_topk.fused import sampling_for
from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.sparse_rows import concatenate

Integers = Callable[..., Tensor]
Same = Callable[[SparseRows, SparseRows], bool]

APPEND = EmitPlan(variant=EmitVariant.APPEND, screen=False, block_n=16, block_c=32, block_d=16)
WORDS = replace(APPEND, variant=EmitVariant.WORDS, block_c=64)
SCAN = replace(APPEND, variant=EmitVariant.SCAN)
PLANS = [
    APPEND,
    replace(APPEND, bulk=False),
    replace(APPEND, screen=True),
    WORDS,
    replace(WORDS, bulk=False),
    SCAN,
    replace(SCAN, screen=True),
]

BY_RANK = [plan for plan in PLANS if plan.variant is not EmitVariant.WORDS]


def plan_on(device: str, plan: EmitPlan) -> EmitPlan:
    """Blocks that fit the interpreter there, blocks of the real size on a GPU."""
    return plan if device == "cpu" else replace(plan, block_n=128, block_c=128, block_d=32, num_warps=8, num_stages=2)


def moved(device: str, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def options_of(rule: str, integers: Integers, c: int, device: str) -> dict[str, Any]:
    options: dict[str, dict[str, Tensor]] = {
        "plain": {},
        "two-sided": {"negative_threshold_C": integers(c).abs() * 4},
        "gated": {"scale_C": integers(c) / 2, "offset_C": integers(c)},
    }
    return {name: vector.to(device) for name, vector in options[rule].items()}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan} {plan.bulk}")
@pytest.mark.parametrize("rule", ["plain", "two-sided", "gated"])
@pytest.mark.parametrize(("n", "d", "c"), [(1, 1, 1), (19, 24, 133)])
def test_threshold_equals_the_oracle_on_exact_numbers(
    triton_device: str,
    small_integers: Integers,
    same: Same,
    poisoned: None,
    plan: EmitPlan,
    rule: str,
    n: int,
    d: int,
    c: int,
) -> None:
    x_ND, w_CD, bias_C = moved(triton_device, small_integers(n, d), small_integers(c, d), small_integers(c))
    threshold_C = (small_integers(c) * 3 + 12).to(triton_device)
    options = options_of(rule, small_integers, c, triton_device)
    plan = plan_on(triton_device, plan)
    found = encode_threshold(x_ND, w_CD, bias_C, threshold_C, backend=Backend.TRITON, plan=plan, capacity=5, **options)
    oracle = encode_threshold(x_ND, w_CD, bias_C, threshold_C, backend=Backend.REFERENCE, **options)
    assert same(found, oracle)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan} {plan.bulk}")
def test_values_follow_the_rule_by_hand(triton_device: str, plan: EmitPlan) -> None:
    x_ND, eye, zero = moved(triton_device, torch.tensor([[2.0, -3.0, 0.5, 0.0]]), torch.eye(4), torch.zeros(4))

    def encoded(threshold: list[float], **vectors: Tensor) -> list[list[float]]:
        options: dict[str, Any] = {name: vector.to(triton_device) for name, vector in vectors.items()}
        rows = encode_threshold(
            x_ND,
            eye,
            zero,
            torch.tensor(threshold, device=triton_device),
            backend=Backend.TRITON,
            plan=plan_on(triton_device, plan),
            **options,
        )
        return [rows.indices.tolist(), rows.values.tolist()]

    assert encoded([0.0] * 4) == [[0, 2], [2.0, 0.5]]
    assert encoded([2.0, 0.0, 0.5, 0.0]) == [[], []], "the threshold itself does not fire"
    assert encoded([-torch.inf] * 4) == [[0, 2], [2.0, 0.5]], "relu makes zeros, and zeros are dropped"
    assert encoded([torch.inf] * 4) == [[], []]
    assert encoded([1.0] * 4, negative_threshold_C=torch.full((4,), 3.0)) == [[0], [2.0]], "strict on both sides"
    assert encoded([-1.0] * 4, negative_threshold_C=torch.ones(4)) == [[0, 1, 2], [2.0, -3.0, 0.5]]
    gate = {"scale_C": torch.full((4,), 2.0), "offset_C": torch.tensor([-4.0, 7.0, 1.0, 0.0])}
    assert encoded([-torch.inf] * 4, **gate) == [[1, 2], [1.0, 2.0]]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan} {plan.bulk}")
@pytest.mark.parametrize("capacity", [1, 129, 130, 131, 300])
def test_no_latent_is_lost_where_every_one_fires(triton_device: str, plan: EmitPlan, capacity: int) -> None:
    x_ND, w_CD, bias_C = moved(triton_device, torch.ones(9, 2), torch.ones(130, 2), torch.arange(130.0))
    rows = encode_threshold(
        x_ND,
        w_CD,
        bias_C,
        torch.zeros_like(bias_C),
        backend=Backend.TRITON,
        plan=plan_on(triton_device, plan),
        capacity=capacity,
    )
    assert rows.indptr.tolist() == [130 * n for n in range(10)]
    assert rows.indices.tolist() == list(range(130)) * 9
    assert rows.values.tolist() == [latent + 2.0 for latent in range(130)] * 9


@pytest.mark.parametrize("capacity", [2, 3, 4])
def test_only_rows_that_overflow_are_computed_again(triton_device: str, capacity: int) -> None:
    x_ND, w_CD, zero = moved(triton_device, torch.ones(40, 1), torch.ones(70, 1), torch.zeros(70))
    x_ND[:30] = 0
    x_ND[7], x_ND[8] = 2, 3
    bias_C = torch.full_like(zero, -2.5)
    bias_C[[5, 6, 69]] = 0  # three latents fire on 30: and on 7, every one on 8
    LAUNCHES.clear()
    rows = encode_threshold(
        x_ND, w_CD, bias_C, zero, backend=Backend.TRITON, plan=plan_on(triton_device, APPEND), capacity=capacity
    )
    counts = rows.indptr.diff().tolist()
    assert counts == [0] * 7 + [3, 70] + [0] * 21 + [3] * 10
    assert LAUNCHES["append folded"] == 2
    assert LAUNCHES["pack by rank"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plan", [APPEND, WORDS, SCAN], ids=str)
def test_half_precision_operands_are_multiplied_exactly(
    triton_device: str, small_integers: Integers, same: Same, plan: EmitPlan, dtype: torch.dtype
) -> None:
    x_ND, w_CD = (part.to(dtype) for part in moved(triton_device, small_integers(21, 40), small_integers(90, 40)))
    zero = torch.zeros(90, device=triton_device)
    found = encode_threshold(x_ND, w_CD, zero, zero + 9, backend=Backend.TRITON, plan=plan_on(triton_device, plan))
    assert same(found, encode_threshold(x_ND, w_CD, zero, zero + 9, backend=Backend.REFERENCE))


@pytest.mark.parametrize("plan", [replace(APPEND, screen=True), replace(SCAN, screen=True)], ids=str)
def test_a_screen_finds_the_exact_fp32_set_where_bf16_alone_would_not(triton_device: str, plan: EmitPlan) -> None:
    generator = torch.Generator().manual_seed(4)
    x_ND, w_CD = torch.randn(24, 96, generator=generator), torch.randn(150, 96, generator=generator)
    # Thresholds so close to a pre-activation of each latent that rounding an operand to bf16 flips many of them.
    u_NC = x_ND.double() @ w_CD.double().T
    band_C = (96 * 2.0**-23 * (x_ND.abs() @ w_CD.abs().T)).amax(dim=0)
    threshold_C = (u_NC[torch.arange(150) % 24, torch.arange(150)] - 2 * band_C).float()
    x_ND, w_CD, threshold_C = moved(triton_device, x_ND, w_CD, threshold_C)
    options: dict[str, Any] = {"scale_C": torch.ones_like(threshold_C)}  # negative thresholds count as well
    zero = torch.zeros_like(threshold_C)

    def active(x_ND: Tensor, w_CD: Tensor, backend: Backend, **extra: Any) -> SparseRows:
        return encode_threshold(x_ND, w_CD, zero, threshold_C, backend=backend, **options, **extra)

    exact = active(x_ND, w_CD, Backend.REFERENCE)
    found = active(x_ND, w_CD, Backend.TRITON, plan=plan_on(triton_device, plan))
    assert torch.equal(found.indptr, exact.indptr)
    assert torch.equal(found.indices, exact.indices)
    torch.testing.assert_close(found.values, exact.values, rtol=1e-5, atol=1e-4)
    rounded = active(x_ND.bfloat16(), w_CD.bfloat16(), Backend.REFERENCE)
    assert not torch.equal(rounded.indptr, exact.indptr), "the test is too easy"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter is numpy
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan} {plan.bulk}")
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
@pytest.mark.parametrize("latent", [65, 69])
def test_a_product_that_is_not_finite_is_reported_and_not_dropped(
    triton_device: str, plan: EmitPlan, damage: float, latent: int
) -> None:
    x_ND, w_CD, zero = torch.ones(9, 4), torch.ones(70, 4), torch.zeros(70)
    x_ND[:5, 1] = 0 if damage == torch.inf else 1
    w_CD[latent, 1] = damage
    x_ND, w_CD, zero = moved(triton_device, x_ND, w_CD, zero)
    with pytest.raises(ContractError, match=r"row 0 .*x is finite"):
        encode_threshold(x_ND, w_CD, zero, zero, backend=Backend.TRITON, plan=plan_on(triton_device, plan))
    if plan in BY_RANK:
        with pytest.raises(ContractError, match=r"row 0 .*x is finite"):
            encode_topk(x_ND, w_CD, zero, 1, backend=Backend.TRITON, plan=plan_on(triton_device, plan))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_the_fallback_of_topk_names_the_row_of_the_call(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def certify_all_but_row_2(bins: Bins, *rest: Any) -> Tensor:
        bins.counts_NB.zero_()
        return torch.tensor([True, True, False], device=triton_device)

    monkeypatch.setattr(sys.modules["gradsae_kernels.encode_topk.fused"], "select", certify_all_but_row_2)
    x_ND, w_CD, zero = torch.full((3, 2), 0.1), torch.ones(900, 2), torch.zeros(900)
    x_ND[2], w_CD[7] = 2, 2e38  # a product that overflows
    x_ND, w_CD, zero = moved(triton_device, x_ND, w_CD, zero)
    with pytest.raises(ContractError, match=r"row 2 .*x is finite"):
        encode_topk(x_ND, w_CD, zero, 2, backend=Backend.TRITON, plan=plan_on(triton_device, APPEND))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bulk", [True, False])
def test_rows_near_the_largest_number_are_screened_exactly(triton_device: str, same: Same, bulk: bool) -> None:
    x_ND, w_CD, zero = moved(triton_device, torch.full((3, 8), 3e38), torch.full((70, 8), 1e-39), torch.zeros(70))
    plan = plan_on(triton_device, replace(APPEND, screen=True, bulk=bulk))
    found = encode_threshold(x_ND, w_CD, zero, zero, backend=Backend.TRITON, plan=plan)
    oracle = encode_threshold(x_ND, w_CD, zero, zero, backend=Backend.REFERENCE)
    assert torch.equal(found.indptr, oracle.indptr)
    assert torch.equal(found.indices, oracle.indices)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan} {plan.bulk}")
@pytest.mark.parametrize("capacity", [45, 60])
def test_some_rows_may_overflow_on_real_numbers(triton_device: str, plan: EmitPlan, capacity: int) -> None:
    """A screen of fewer rows has less slack, a library's product of fewer rows may round otherwise."""
    generator = torch.Generator().manual_seed(0)
    x_ND, w_CD = torch.randn(24, 32, generator=generator), torch.randn(200, 32, generator=generator)
    x_ND, w_CD, zero = moved(triton_device, x_ND, w_CD, torch.zeros(200))
    plan = plan_on(triton_device, plan)
    found = encode_threshold(x_ND, w_CD, zero, zero + 4, backend=Backend.TRITON, plan=plan, capacity=capacity)
    oracle = encode_threshold(x_ND, w_CD, zero, zero + 4, backend=Backend.REFERENCE)
    counts = oracle.indptr.diff()
    assert counts.min() < capacity < counts.max() + 10, "the test is too easy"
    assert torch.equal(found.indptr, oracle.indptr)
    assert torch.equal(found.indices, oracle.indices)
    torch.testing.assert_close(found.values, oracle.values, rtol=1e-5, atol=1e-5)


def test_neighbours_that_all_fire_survive_another_cut_into_stripes(triton_device: str, same: Same) -> None:
    x_ND, w_CD = moved(triton_device, torch.ones(32, 1), torch.ones(768, 1))
    x_ND[1:] = -1
    w_CD[:256], w_CD[512:] = -1, -1
    plan = plan_on(triton_device, replace(WORDS, block_c=128))
    zero = torch.zeros_like(w_CD[:, 0])
    found = encode_threshold(x_ND[:, :], w_CD, zero - 0.5, zero, backend=Backend.TRITON, plan=plan, capacity=64)
    assert same(found, encode_threshold(x_ND, w_CD, zero - 0.5, zero, backend=Backend.REFERENCE))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan} {plan.bulk}")
def test_split_tokens_and_repeated_calls_give_the_same_bits(triton_device: str, same: Same, plan: EmitPlan) -> None:
    generator = torch.Generator().manual_seed(9)
    x_ND, w_CD = torch.randn(21, 30, generator=generator), torch.randn(100, 30, generator=generator)
    x_ND, w_CD, zero = moved(triton_device, x_ND.bfloat16(), w_CD.bfloat16(), torch.zeros(100))

    def encoded(x_ND: Tensor, capacity: int) -> SparseRows:
        return encode_threshold(
            x_ND, w_CD, zero, zero + 5, backend=Backend.TRITON, plan=plan_on(triton_device, plan), capacity=capacity
        )

    whole = encoded(x_ND, 256)
    assert all(same(encoded(x_ND, capacity), whole) for capacity in (1, 256))
    if plan.variant is not EmitVariant.SCAN:  # a library's product may round otherwise for another number of tokens
        assert same(concatenate([encoded(part_ND, 256) for part_ND in x_ND.split(9)]), whole)


TOPK = [(3, 24, 2048, 1), (2, 9, 2048, 16), (5, 24, 600, 3), (3, 5, 17, 4)]


@pytest.mark.parametrize("plan", BY_RANK, ids=lambda plan: f"{plan} {plan.bulk}")
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("n", "d", "c", "k"), TOPK)
def test_topk_equals_the_oracle_ties_included(
    triton_device: str,
    small_integers: Integers,
    same: Same,
    poisoned: None,
    plan: EmitPlan,
    signed: bool,
    n: int,
    d: int,
    c: int,
    k: int,
) -> None:
    x_ND, w_CD, bias_C = moved(triton_device, small_integers(n, d), small_integers(c, d), small_integers(c))
    plan = plan_on(triton_device, replace(plan, block_c=128))
    found = encode_topk(x_ND, w_CD, bias_C, k, signed=signed, backend=Backend.TRITON, plan=plan)
    assert same(found, encode_topk(x_ND, w_CD, bias_C, k, signed=signed, backend=Backend.REFERENCE))


def test_rows_without_a_certificate_take_the_fallback(triton_device: str, same: Same) -> None:
    """All latents equal: none is above the bar. One latent in a hundred positive: the bar is zero, which is certain."""
    x_ND, w_CD = moved(triton_device, torch.tensor([[1.0], [-1.0], [2.0]]), torch.ones(900, 1))
    bias_C = torch.zeros(900, device=triton_device)
    LAUNCHES.clear()
    rows = encode_topk(x_ND, w_CD, bias_C, 3, backend=Backend.TRITON, plan=plan_on(triton_device, APPEND))
    assert rows.indptr.tolist() == [0, 3, 3, 6]
    assert rows.indices.tolist() == [0, 1, 2, 0, 1, 2]
    assert LAUNCHES["topk fallback"] == 1
    bias_C[::100] = 2
    LAUNCHES.clear()
    rows = encode_topk(-x_ND[:1], w_CD, bias_C, 3, backend=Backend.TRITON, plan=plan_on(triton_device, APPEND))
    assert rows.indices.tolist() == [0, 100, 200]
    assert LAUNCHES["topk fallback"] == 0
    assert LAUNCHES["select"] == 1


def test_a_row_with_more_candidates_than_room_takes_the_fallback(triton_device: str, same: Same) -> None:
    """The sample misses the large half of the dictionary, so that its bar lets far too much through."""
    from gradsae_kernels.encode_topk.fused import sampled_latents

    sampling = sampling_for(2, 2048, 1)
    assert sampling is not None
    bias_C = torch.arange(5000.0, 7048.0)
    bias_C[sampled_latents(2048, sampling.size)] = 1.0
    x_ND, w_CD, bias_C = moved(triton_device, torch.zeros(2, 1), torch.ones(2048, 1), bias_C)
    LAUNCHES.clear()
    found = encode_topk(x_ND, w_CD, bias_C, 2, backend=Backend.TRITON, plan=plan_on(triton_device, APPEND))
    assert same(found, encode_topk(x_ND, w_CD, bias_C, 2, backend=Backend.REFERENCE))
    assert LAUNCHES["topk fallback"] == 1


def test_every_variant_has_been_launched_by_its_name(triton_device: str, small_integers: Integers) -> None:
    x_ND, w_CD, zero = moved(triton_device, small_integers(1, 8), small_integers(700, 8), torch.zeros(700))
    LAUNCHES.clear()
    for plan in (APPEND, WORDS, SCAN, replace(APPEND, screen=True), replace(SCAN, screen=True)):
        plan = plan_on(triton_device, replace(plan, block_c=128))
        extra: dict[str, Any] = {"backend": Backend.TRITON, "plan": plan}
        encode_threshold(x_ND, w_CD, zero, zero + 40, **extra)
        encode_threshold(x_ND, w_CD, zero, zero + 40, scale_C=zero + 1, **extra)
        encode_threshold(x_ND, w_CD, zero, zero + 40, negative_threshold_C=zero + 40, **extra)
        if plan.variant is not EmitVariant.WORDS:
            encode_topk(x_ND, w_CD, zero, 2, **extra)
            encode_topk(x_ND, w_CD, zero, 2, signed=True, **extra)
    ways = {name for name, count in LAUNCHES.items() if count}
    assert ways >= {
        *(f"{variant} {rule}" for variant in ("append", "words", "scan") for rule in ("folded", "above", "two_sided")),
        *(f"{variant} {rule}" for variant in ("append", "scan") for rule in ("bar", "magnitude")),
        *(
            f"{variant} {rule} screen"
            for variant in ("append", "scan")
            for rule in ("folded", "two_sided", "magnitude")
        ),
        *("bar", "select", "pack by rank", "pack ordered", "lower", "project"),
    }


def test_no_tokens_give_no_rows(triton_device: str) -> None:
    x_ND, w_CD, zero = moved(triton_device, torch.zeros(0, 3), torch.ones(500, 3), torch.zeros(500))
    for rows in (
        encode_threshold(x_ND, w_CD, zero, zero, backend=Backend.TRITON),
        encode_topk(x_ND, w_CD, zero, 2, backend=Backend.TRITON),
    ):
        assert rows.indptr.tolist() == [0]
        assert len(rows.indices) == len(rows.values) == 0


@pytest.mark.parametrize(
    ("dtypes", "shape", "text"),
    [
        ("bf16 bf16", (2304, 65536), "append 128x128x64 w4 s3"),
        ("bf16 bf16", (2304, 16384), "words 128x128x64 w8 s3"),
        ("fp32 fp32", (2304, 16384), "append+screen 128x128x64 w4 s3"),
        ("bf16 fp32", (2304, 65536), "append+screen 128x128x64 w4 s3"),
    ],
)
def test_the_table_says_which_plan_runs(dtypes: str, shape: tuple[int, int], text: str) -> None:
    names = {"bf16": torch.bfloat16, "fp32": torch.float32}
    x_dtype, w_dtype = (names[name] for name in dtypes.split())
    assert str(choose_plan((9, 0), x_dtype, w_dtype, *shape)) == text


def test_a_plan_that_cannot_be_right_is_refused(triton_device: str) -> None:
    x_ND, w_CD, zero = moved(triton_device, torch.ones(2, 8), torch.ones(40, 8).bfloat16(), torch.zeros(40))
    for plan, reason in ((APPEND, "expected one dtype"), (replace(WORDS, screen=True), "append or scan")):
        with pytest.raises(ContractError, match=reason):
            encode_threshold(x_ND, w_CD, zero, zero, backend=Backend.TRITON, plan=plan)
    with pytest.raises(ContractError, match="append or scan"):
        encode_topk(x_ND, w_CD.float(), zero, 2, backend=Backend.TRITON, plan=WORDS)


@pytest.mark.gpu
@pytest.mark.parametrize("change", [{"block_n": 16}, {"block_c": 32}, {"num_warps": 16}, {"pack": 2}])
def test_blocks_that_would_emit_an_element_twice_are_refused(change: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("the interpreter has no threads")
    x_ND, w_CD, zero = moved("cuda", torch.ones(2, 8), torch.ones(40, 8), torch.zeros(40))
    with pytest.raises(ContractError, match="blocks"):
        encode_threshold(
            x_ND, w_CD, zero, zero, backend=Backend.TRITON, plan=replace(plan_on("cuda", APPEND), **change)
        )


def test_tuning_takes_turns_on_private_bins_and_returns_one_of_the_plans(
    triton_device: str, small_integers: Integers
) -> None:
    x_ND, w_CD, zero = moved(triton_device, small_integers(3, 8), small_integers(40, 8), torch.zeros(40))
    plans = [plan_on(triton_device, plan) for plan in (APPEND, SCAN)]
    LAUNCHES.clear()
    assert tune_plan(x_ND, w_CD, zero, zero + 5, plans=plans) in plans
    assert LAUNCHES["append folded"] == LAUNCHES["scan folded"] == 6
    table = choose_plan((9, 0), torch.float32, torch.float32, 8, 40)
    assert candidates(table)[0] == table
    assert {plan.variant for plan in candidates(table)} == {EmitVariant.APPEND, EmitVariant.SCAN}


@pytest.mark.parametrize("capacity", [0, -1, True, 2.0])
def test_a_capacity_that_is_no_room_is_refused(capacity: int) -> None:
    with pytest.raises(ContractError, match="at least 1"):
        encode_threshold(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(5), torch.zeros(5), capacity=capacity)
