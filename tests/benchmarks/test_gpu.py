"""The GPU proof on a CPU: every promised line is there, and nothing is called measured that was not."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.__main__ import run
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.machine import Rates
from benchmarks.gpu.progress import Progress
from benchmarks.gpu.row import Row, Status
from benchmarks.gpu.shape import SMALL, Shape
from benchmarks.gpu.stopwatch import Stopwatch, quantile
from benchmarks.gpu.table import Candidate, Table
from benchmarks.gpu.truth import (
    check_dense,
    check_documents,
    check_projections,
    check_reconstruction,
    check_threshold,
    check_topk,
)
from benchmarks.gpu.variant import Variant, WrongAnswer
from benchmarks.gpu.workload import Workload
from gradsae_kernels import Backend, SparseRows, decode, encode_threshold, encode_topk, project
from gradsae_kernels.project import project_documents

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PROMISED = {  # operator -> lines of a bf16 shape and of an fp32 shape
    "product": 2,
    "encode_threshold": 7,
    "encode_topk": 3,
    "project": 6,
    "project_documents": 2,
    "decode": 4,
}
NUMBERS = ("ms", "ms_low", "ms_high", "tflops", "ratio", "bytes_moved", "copy_share")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The result of the whole command, and its page."""
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = out.glob("*.json")
    return json.loads(result.read_text(encoding="utf-8")), result.with_suffix(".md").read_text(encoding="utf-8")


def test_a_small_run_has_every_promised_line(small_run: tuple[dict[str, Any], str]) -> None:
    rows = [Row.from_json(values) for values in small_run[0]["rows"]]
    for shape in SMALL:
        assert Counter(row.operator for row in rows if row.shape == shape) == PROMISED
        assert len({(row.operator, row.variant) for row in rows if row.shape == shape}) == sum(PROMISED.values())


def test_only_what_was_measured_has_numbers_and_the_rest_has_a_reason(small_run: tuple[dict[str, Any], str]) -> None:
    for row in (Row.from_json(values) for values in small_run[0]["rows"]):
        numbers = [getattr(row, name) for name in NUMBERS]
        if row.status is Status.MEASURED:
            assert all(number > 0 for number in numbers), row
            assert row.ms_low <= row.ms <= row.ms_high  # type: ignore[operator]
            assert row.turns >= 3
            assert "Triton" not in row.variant
        else:
            assert numbers == [None] * len(NUMBERS)
            assert row.status is Status.UNAVAILABLE
            assert row.reason


def test_the_page_of_a_run_on_a_cpu_claims_nothing_about_a_gpu(small_run: tuple[dict[str, Any], str]) -> None:
    result, page = small_run
    assert "It says nothing about any GPU" in page
    assert "skipped" in result["sections"]["tests"]
    assert page.count("not available: Triton runs on a CUDA device") == sum(
        "Triton" in row["variant"] and "Triton runs on" in row["reason"] for row in result["rows"]
    )
    assert str(ROOT) not in page


@pytest.fixture(scope="module", params=SMALL, ids=str)
def workload(request: pytest.FixtureRequest) -> Workload:
    return Workload.random(request.param, CPU)


def test_thresholds_let_the_wanted_number_fire(workload: Workload) -> None:
    per_token = len(workload.rows.indices) / workload.shape.tokens
    assert per_token == pytest.approx(workload.shape.active, rel=0.3)
    fires_C = torch.bincount(workload.rows.indices, minlength=workload.shape.latents).sort(descending=True).values
    assert fires_C[: len(fires_C) // 10].sum() > 3 * fires_C.sum() / 10  # common and rare latents


def right_answers(workload: Workload) -> Iterator[tuple[Callable[[Any], None], Any]]:
    """Every check with what the oracle answers."""
    shape, rows, grad_ND, w_CD = workload.shape, workload.rows, workload.grad_ND, workload.w_dec_CD
    encoder = (workload.x_ND, workload.w_enc_CD, workload.bias_C)
    oracle = Backend.REFERENCE
    yield check_threshold(workload), encode_threshold(*encoder, workload.threshold_C, backend=oracle)
    yield check_topk(workload), encode_topk(*encoder, shape.active, backend=oracle)
    yield check_dense(workload), workload.x_ND.float() @ workload.w_enc_CD.float().T
    yield check_projections(workload), project(rows, grad_ND, w_CD, backend=oracle)
    yield check_documents(workload), project_documents(rows, grad_ND, w_CD, workload.document_ptr, backend=oracle)
    yield check_reconstruction(workload), decode(rows, w_CD, backend=oracle)


def spoilt(answer: Any) -> Iterator[Any]:
    """The same answer with one number off, with a number that is none, and, where rows are sparse, with a pair lost."""
    values: Tensor = answer.values if isinstance(answer, SparseRows) else answer
    for wrong in (values.clone().view(-1), values.clone().view(-1)):
        wrong[0] = wrong[0] + 1 if torch.isfinite(wrong[0]) else 0
        yield answer._replace(values=wrong) if isinstance(answer, SparseRows) else wrong.view_as(values)
        wrong[0] = torch.nan
    if isinstance(answer, SparseRows):
        yield SparseRows((answer.indptr - 1).clamp(min=0), answer.indices[1:], answer.values[1:])


def test_a_right_answer_passes_and_a_wrong_one_does_not(workload: Workload) -> None:
    for check, answer in right_answers(workload):
        check(answer)
        for wrong in spoilt(answer):
            with pytest.raises(WrongAnswer):
                check(wrong)


def test_an_extra_latent_is_wrong(workload: Workload) -> None:
    lower = encode_threshold(
        workload.x_ND, workload.w_enc_CD, workload.bias_C, workload.threshold_C - 0.5, backend=Backend.REFERENCE
    )
    with pytest.raises(WrongAnswer, match="extra"):
        check_threshold(workload)(lower)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(
        device=CPU,
        rates=Rates(copy_bytes_per_second=1e9, product_flops_per_second=1e9),
        watch=Stopwatch(CPU),
        deadline=Deadline(100),
        progress=Progress(tmp_path / "progress"),
        small=True,
    )


def variant(**parts: Any) -> Variant:
    defaults = {"operator": "product", "name": "bare", "check": lambda _: None, "flops": 1.0, "bytes_moved": 1.0}
    return Variant(**{**defaults, **parts})


def raise_(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ({"check": lambda _: raise_(WrongAnswer("off by 3"))}, Status.WRONG),
        ({"call": lambda: raise_(RuntimeError("off by 3"))}, Status.UNAVAILABLE),
        ({"call": lambda: raise_(RuntimeError("off by 3")), "is_ours": True}, Status.FAILED),
        ({"call": lambda: raise_(torch.OutOfMemoryError("off by 3"))}, Status.SKIPPED),
        ({"missing": "off by 3"}, Status.UNAVAILABLE),
    ],
)
def test_what_does_not_answer_rightly_is_not_timed(table: Table, parts: dict[str, Any], status: Status) -> None:
    row = table.prepare(SMALL[0], variant(**parts), Deadline(100))
    assert isinstance(row, Row)
    assert row.status is status
    assert "off by 3" in row.reason
    assert row.ms is None


def test_what_no_longer_fits_is_left_out_and_says_so(table: Table) -> None:
    row = table.prepare(SMALL[0], variant(call=lambda: raise_(AssertionError("called"))), Deadline(0))
    assert isinstance(row, Row)
    assert (row.status, row.reason) == (Status.SKIPPED, "0 s were left of this shape's time")
    late = replace(table, deadline=Deadline(0))
    late.measure(SMALL[0], 10)
    (line,) = late.progress.rows()
    assert (line.status, line.operator, line.ms) == (Status.SKIPPED, "all", None)


def test_a_slow_variant_gives_way_to_the_others(table: Table) -> None:
    slow, floor = variant(operator="decode", name="slow"), variant()
    ready = {one.key: Candidate(variant=one, once_ms=once, peak_bytes=None) for one, once in ((slow, 9e5), (floor, 1))}
    rows = table.time(SMALL[0], ready, Deadline(5))
    assert rows[slow.key].status is Status.SKIPPED
    assert "900.00 s" in rows[slow.key].reason
    assert rows[floor.key].status is Status.MEASURED
    assert rows[floor.key].ratio == 1


def test_turns_alternate_their_order() -> None:
    called: list[str] = []
    times = Stopwatch(CPU).turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 4)
    assert "".join(called) == "abbaabba"
    assert [len(values) for values in times.values()] == [4, 4]
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_a_kernel_that_kills_its_process_costs_one_line(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress")
    shape: Shape = SMALL[0]
    progress.write("begin", [str(shape), "product: bare"])
    progress.write("ready", [str(shape), "product: bare"])
    progress.write("begin", [str(shape), "project: Triton"])
    progress.blame(SMALL, "status -11")
    assert progress.deaths(shape) == {"project: Triton": "status -11"}
    assert progress.deaths(SMALL[1]) == {}
    assert not progress.is_done(shape)
    progress.blame(SMALL, "status -9")  # nothing was open: the shape is given up, not tried for ever
    assert progress.is_done(shape)
    assert progress.rows()[0].status is Status.FAILED


def test_a_process_that_hangs_is_ended_at_its_deadline() -> None:
    status, output = run(["-c", "print('begun', flush=True); import time; time.sleep(60)"], 1.0)
    assert status is None
    assert output.strip() == "begun"
