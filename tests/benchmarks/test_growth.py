"""The growth benchmark: exponents of costs that are known, and every series at two sizes that are small."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.growth import cost, extraction, store_size, width
from benchmarks.growth import series as every
from benchmarks.growth.__main__ import chosen_sizes, machine, run
from benchmarks.growth.cost import CPU_SECONDS, PEAK, SECONDS, Found, in_child, measure, measure_short
from benchmarks.growth.curve import Curve, exponent, upper_half
from benchmarks.growth.extraction import ENGINE, EXTRACTION, MODEL
from benchmarks.growth.page import page
from benchmarks.growth.plot import to_svg
from benchmarks.growth.series import SIZES, Bench, Series
from benchmarks.growth.tiny import Shape
from gradsae_kernels import encode_threshold

TINY = Shape(width=16, layers=2, latents=64, active=8)
SMALL = {
    "documents": (2, 4),
    "context": (32, 64),
    "sites": (1, 2),
    "spliced": (1, 2),
    "width": (512, 1024),
    "store": (132_000, 264_000),
}


def here(call: Callable[..., Found], *arguments: Any) -> Found:
    return call(*arguments)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, rounds=1, threads=1, call=here, tell=lambda _: None)


def curve(amounts: list[list[float]], sizes: tuple[int, ...] = (10, 100, 1000, 10_000), **facts: Any) -> Curve:
    return Curve(name="a line", unit=SECONDS, sizes=sizes, rounds=tuple(map(tuple, amounts)), **facts)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power: float) -> None:
    sizes = [128, 256, 1024, 8192]
    assert exponent(sizes, [3e-3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


def test_there_is_no_exponent_of_one_size_or_of_nothing() -> None:
    assert math.isnan(exponent([1], [1.0]))
    assert math.isnan(exponent([1, 2], [0.0, 1.0]))


def test_a_constant_hides_growth_in_the_whole_range_and_less_in_the_upper_half() -> None:
    sizes = (100, 1000, 10_000, 100_000, 1_000_000)
    found = curve([[5.0 + 1e-3 * size] for size in sizes], sizes)
    assert found.whole < 0.7
    assert 0.85 < found.upper < 1
    assert upper_half(sizes, found.medians)[0] == [1000, 10_000, 100_000, 1_000_000][1:]


def test_only_growth_beyond_noise_is_a_fault() -> None:
    linear, square = [[1.0], [10.0], [100.0], [1000.0]], [[1.0], [100.0], [10_000.0], [1_000_000.0]]
    noisy = [[1.0] * 3, [10.0] * 3, [100.0] * 3, [1000.0, 1300.0, 1400.0]]
    assert curve(linear).verdict == "yes"
    assert curve(square).verdict == "**no**"
    assert curve(square, excuse="attention").verdict == "attention"
    assert curve(linear, excuse="attention").verdict == "yes"
    assert curve(noisy).verdict == "within noise"
    assert curve(noisy).upper_of_rounds == pytest.approx((1.0, 1 + math.log10(1.4)))
    assert curve([[0.0], [1.0], [2.0], [0.0]]).verdict == "–"


def test_sizes_that_were_measured_once_do_not_break_the_spread() -> None:
    found = curve([[1.0, 1.1], [10.0, 11.0], [100.0, 90.0], [1000.0]])
    assert np.ptp(found.upper_of_rounds) == 0
    assert found.upper_of_rounds[0] == pytest.approx(1.0)


def test_a_cost_counts_processor_time_and_the_memory_that_was_touched() -> None:
    found: Found = {}
    measure("ones", lambda: np.ones(1 << 23), found)
    assert found["ones", SECONDS] > 0
    assert found["ones", CPU_SECONDS] > 0
    assert ("ones", PEAK) not in found or found["ones", PEAK] > 0.9 * (1 << 26)
    calls: list[None] = []
    measure_short("append", lambda: calls.append(None), found, at_least=0.0)
    assert len(calls) == 4  # the first does not count


def test_a_child_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_PRELOADED", [])
    assert in_child(os.getpid) != os.getpid()


def lines_of(series: Series) -> dict[tuple[str, str], Curve]:
    return {(one.name, one.unit): one for one in series.curves}


@pytest.mark.parametrize("name", list(SIZES))
def test_each_series_runs_at_small_sizes_and_tells_of_every_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for shape in ("SHALLOW", "WIDE", "DEEP"):
        monkeypatch.setattr(every, shape, TINY)
    monkeypatch.setattr(extraction, "WARM_UP_DOCUMENTS", 1)
    monkeypatch.setattr(extraction, "TURNS", 1)
    monkeypatch.setattr(store_size, "POOL_DOCUMENTS", 2)
    (found,) = run(bench, {name: SMALL[name]})
    lines = lines_of(found)
    assert len(lines) == len(found.curves) >= 5
    assert all(one.sizes == SMALL[name] and [len(amounts) for amounts in one.rounds] == [1, 1] for one in found.curves)
    assert all(min(one.medians) > 0 for (line, unit), one in lines.items() if unit == SECONDS and line != ENGINE)
    if name in ("documents", "store"):
        small, large = lines["store", "bytes on disk"].medians
        assert small < large < 2.2 * small  # a part of the bytes does not grow
    if name == "context":
        assert {line for (line, _), one in lines.items() if one.excuse} == {MODEL, EXTRACTION}
        assert lines[EXTRACTION, PEAK].excuse is None if (EXTRACTION, PEAK) in lines else True
    text = page([found], machine(1), "today", "plot.svg")
    assert all(one.name in text for one in found.curves)
    assert to_svg([found]).count("<circle") >= 4


def test_work_of_another_amount_than_was_asked_for_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_more(x_ND: Any, w_CD: Any, bias_C: Any, threshold_C: Any) -> Any:
        return encode_threshold(x_ND, w_CD, bias_C, threshold_C - 1)

    monkeypatch.setattr(width, "encode_threshold", encode_more)
    with pytest.raises(AssertionError, match="for 512 latents, expected about 64"):
        run(bench, {"width": SMALL["width"]})


def test_a_slow_size_is_measured_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every, "PATIENCE", -1.0)
    three = Bench(folder=bench.folder, rounds=3, threads=1, call=here, tell=lambda _: None)
    (found,) = three.collect("made up", (1, 2), lambda size: {("line", SECONDS): float(size)})
    assert found.rounds == ((1.0,), (2.0,))
    monkeypatch.setattr(every, "PATIENCE", 60.0)
    (found,) = three.collect("made up", (1, 2), lambda size: {("line", SECONDS): float(size)})
    assert found.rounds == ((1.0,) * 3, (2.0,) * 3)


def test_series_and_sizes_are_chosen_by_name() -> None:
    assert chosen_sizes(None, []) == SIZES
    assert chosen_sizes("store,width", ["store=10000000"]) == {
        "store": (1_000_000, 3_000_000, 10_000_000),
        "width": SIZES["width"],
    }
    with pytest.raises(SystemExit, match="unknown series depth; expected documents"):
        chosen_sizes("depth", [])
    with pytest.raises(SystemExit, match="leaves 1 of"):
        chosen_sizes("width", ["width=4096"])
