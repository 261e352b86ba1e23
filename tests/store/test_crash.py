"""A writer killed at any moment, and resumed, leaves what an uninterrupted one leaves, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.killed_writer", *command],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # the process forks, so it must not have threads
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_20_random_moments_and_resumed_is_byte_identical(tmp_path: Path) -> None:
    assert run("random", str(tmp_path), "20").startswith("20 kills")


def test_killed_before_every_step_of_the_protocol_and_resumed_is_byte_identical(tmp_path: Path) -> None:
    steps = int(run("steps", str(tmp_path)).split()[0])
    assert steps > 50
