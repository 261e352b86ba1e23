"""A command killed at any moment, and run again, leaves what an uninterrupted one leaves, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.durability.commands import COMMANDS, scenario_of
from benchmarks.durability.power_loss import cut_power

ROOT = Path(__file__).parents[2]
OTHERS = [name for name in COMMANDS if name not in ("extract", "protocol")]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.durability.kills", *command],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # the process forks, so it must not have threads
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_300_random_moments_and_resumed_is_byte_identical(tmp_path: Path) -> None:
    assert run("random", str(tmp_path), "extract", "300", "0") == "300 kills, 0 violations\n"


def test_killed_before_every_step_of_the_protocol_and_resumed_is_byte_identical(tmp_path: Path) -> None:
    steps, found = run("steps", str(tmp_path), "protocol", "1", "0").split(" steps, ")
    assert int(steps) > 200
    assert found == "0 violations\n"


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_command_killed_before_some_steps_and_run_again_is_byte_identical(
    tmp_path: Path, name: str
) -> None:
    steps, found = run("steps", str(tmp_path), name, "293", "0").split(" steps, ")
    assert int(steps) >= 3
    assert found == "0 violations\n"


def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    outcome = cut_power(scenario_of("protocol", tmp_path), tmp_path, clones=500)
    assert outcome.clones >= 500
    assert outcome.violations == ()


@pytest.mark.parametrize("name", OTHERS)
def test_power_cuts_of_every_other_command_lose_nothing(tmp_path: Path, name: str) -> None:
    assert cut_power(scenario_of(name, tmp_path), tmp_path, clones=8).violations == ()


@pytest.mark.parametrize("forgotten", ["records.objects.sync_all", "places.durable.sync"])
def test_a_writer_that_forgets_to_sync_is_found_out(tmp_path: Path, forgotten: str) -> None:
    with mock.patch(f"gradsae_fast.store.{forgotten}"):
        assert cut_power(scenario_of("protocol", tmp_path), tmp_path, clones=100).violations
