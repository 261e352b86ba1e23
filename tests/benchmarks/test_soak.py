"""The soak: what leaks is found, what swings is not called a leak, and the command runs from end to end."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak.sample import Sample, look
from benchmarks.soak.trend import MEASURES, Trend, trend

ROOT = Path(__file__).parents[2]
RESIDENT = next(measure for measure in MEASURES if measure.name == "resident memory")
HANDLES = next(measure for measure in MEASURES if measure.name == "file handles")
MEBIBYTE = 2**20


def an_hour(resident: Callable[[float], float], handles: Callable[[float], int] = lambda hours: 20) -> list[Sample]:
    """Samples of an hour, every 5 s, in rounds of two minutes; functions of the time in hours."""
    return [
        Sample(
            seconds=second,
            round=second // 120,
            tokens=1000 * second,
            blocks=1_000_000,
            resident=int(resident(second / 3600)),
            proportional=int(resident(second / 3600)),
            handles=handles(second / 3600),
            threads=4,
            temporaries=0,
            disk=10**7,
        )
        for second in range(0, 3600, 5)
    ]


def swinging(hours: float) -> float:
    """600 MiB that swing by 60 within a round, and by some more from one sample to the next."""
    return MEBIBYTE * (600 + 60 * math.sin(2 * math.pi * 30 * hours) + random.Random(hours).uniform(-20, 20))


def fitted(samples: list[Sample]) -> Trend:
    return trend(RESIDENT, samples, 600.0)


def test_memory_that_swings_within_rounds_is_flat() -> None:
    found = fitted(an_hour(swinging))
    assert found.verdict == "flat"
    assert found.rounds == 24
    assert found.mean == pytest.approx(600, rel=0.02)


def test_a_leak_of_five_per_cent_an_hour_is_found_beneath_the_swing() -> None:
    found = fitted(an_hour(lambda hours: swinging(hours) + 30 * MEBIBYTE * hours))
    assert found.verdict == "grows"
    assert found.low < 30 < found.high


def test_growth_in_the_warm_up_alone_is_not_judged() -> None:
    assert fitted(an_hour(lambda hours: swinging(hours) - 300 * MEBIBYTE * (hours < 1 / 6))).verdict == "flat"


def test_one_handle_left_behind_by_each_round_is_found() -> None:
    leaking = an_hour(swinging, lambda hours: 20 + int(30 * hours) + random.Random(hours).choice((0, 3)))
    assert trend(HANDLES, leaking, 600.0).verdict == "grows"
    assert trend(HANDLES, an_hour(swinging, lambda hours: 20 + int(100 * hours) % 3), 600.0).verdict == "flat"


def test_residuals_that_follow_each_other_widen_the_interval() -> None:
    def slow(hours: float) -> float:
        return MEBIBYTE * (600 + 20 * math.sin(2 * math.pi * 2.5 * hours))

    alike, mixed = an_hour(slow), an_hour(slow)
    order = random.Random(0).sample(range(len(mixed)), len(mixed))
    mixed = [replace(sample, resident=alike[other].resident) for sample, other in zip(mixed, order, strict=True)]
    widths = [found.high - found.low for found in (fitted(alike), fitted(mixed))]
    assert widths[0] > 3 * widths[1]


def test_a_run_of_less_than_three_rounds_has_no_trend() -> None:
    with pytest.raises(ValueError, match="2 rounds after the warm-up"):
        trend(RESIDENT, an_hour(swinging)[: 3 * 24], 0.0)


def test_a_look_at_a_process_counts_what_it_holds(tmp_path: Path) -> None:
    def here() -> Sample:
        return look(os.getpid(), tmp_path, seconds=0.0, round=0, tokens=0, blocks=0)

    before = here()
    (tmp_path / "one.gradsae" / "segments" / "000000-abc").mkdir(parents=True)
    (tmp_path / "one.gradsae" / "commits").mkdir()
    (tmp_path / "one.gradsae" / "commits" / ".tmp-12").write_bytes(b"1234")
    with (tmp_path / "kept").open("wb"):
        after = here()
    assert after.handles == before.handles + 1
    assert after.temporaries == before.temporaries + 2
    assert after.disk == before.disk + 4
    assert after.resident > MEBIBYTE


def test_twenty_seconds_of_extraction_run_from_end_to_end(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path), "--work", str(tmp_path), "--minutes", "0.33", "--warm-up", "0", "--every", "0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *command, "--documents", "2", "--characters", "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: memory still grows in the first seconds
    (path,) = tmp_path.glob("*-soak.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    verdicts = {one["name"]: one["verdict"] for one in found["trends"]}
    assert verdicts["temporary files and folders"] == "flat"
    assert found["samples"][-1]["tokens"] > 0
    assert path.with_suffix(".svg").read_text(encoding="utf-8").count("<polyline") == 2 * len(MEASURES) + 1
    assert "| resident memory [MiB] |" in path.with_suffix(".md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("tmp*")), "the work folder is gone"
