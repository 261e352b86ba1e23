"""What `gradsae info` claims of trials is what the newest results have; who runs others must write them down there."""

import re
from pathlib import Path

from benchmarks.durability.pieces import read_lines
from gradsae_fast.store.promise import MEASURED, TRIALS, TRIED_ON

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SORTS = {
    "kills": r"SIGKILL at a random moment: .*",
    "steps": r"SIGKILL before every (\d+(th|rd|nd|st) )?step on the disk: .*",
    "power cuts": r"power cut: .*",
    "flips": "bits flipped",
    "cuts": "files cut short",
}


def test_the_trials_that_are_claimed_were_done_and_had_no_violation() -> None:
    newest = max(RESULTS.glob("*-durability.json"))
    lines = read_lines(newest)
    assert newest.name.startswith(MEASURED)
    assert [violation for line in lines for violation in line.violations] == []
    for name, pattern in SORTS.items():
        assert TRIALS[name] == sum(line.trials for line in lines if re.fullmatch(pattern, line.what)), name
    assert set(TRIALS) == set(SORTS)
    assert sorted(TRIED_ON) == sorted({line.disk for line in lines})
