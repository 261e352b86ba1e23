"""Only errors of the project come out of a store that someone made to do harm, and nothing outside it is touched.

The long trials are `python -m benchmarks.durability.fuzz`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_hundred_mutated_stores_give_answers_or_errors_of_the_project() -> None:
    command = [sys.executable, "-m", "benchmarks.durability.fuzz", "--trials", "120", "--quick", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert ": 0 violations, " in done.stdout
    for kind in ("field", "raw_document", "metadata", "numbers", "shard", "exchange", "no_file"):
        assert f"'{kind}'" in done.stdout
