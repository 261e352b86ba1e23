"""Commands that are killed: with SIGKILL, at random moments or before every step on the disk, and run again.

What must hold after every kill, and of every store in the end, is in `scenario`.

A child is forked for each life of a command, so this process must have no threads; call it in one of its own:

    python -m benchmarks.durability.kills random FOLDER SCENARIO KILLS SEED
    python -m benchmarks.durability.kills steps FOLDER SCENARIO STRIDE SEED

prints a line, what was done, and a line for each broken promise. With a stride of 1 it is every step, else every
so many from a random one on.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.durability.commands import scenario_of
from benchmarks.durability.contents import view
from benchmarks.durability.scenario import Expected, Scenario
from benchmarks.durability.small_run import ignore


def kill_at_random(scenario: Scenario, folder: Path, kills: int, seed: int = 0) -> tuple[int, list[str]]:
    """Kill the command so many times or one more, each life going on with the last store until it is complete."""
    expected = Expected(scenario, folder)  # compiles, so that children write from their first moment
    timed = scenario.start(folder / "timed")
    started = time.perf_counter()
    os.waitpid(_fork(lambda: scenario.act(timed, ignore)), 0)
    whole = time.perf_counter() - started
    chance, faults, done, store = random.Random(seed), list[str](), 0, scenario.start(folder / "interrupted")
    while done < kills:
        acknowledged, killed = _one_life(
            scenario, store, [chance.uniform(0, 0.6 * whole) for _ in range(scenario.writers)]
        )
        done += killed
        faults += expected.faults_after(store, acknowledged)
        if not killed or view(store) == expected.after or done >= kills:
            scenario.act(store, ignore)
            faults += expected.faults_at_the_end(store)
            shutil.rmtree(store)
            scenario.start(store)
    return done, faults


def _one_life(scenario: Scenario, store: Path, lives: Sequence[float]) -> tuple[set[int], int]:
    """Run the command, as often at once as there are lives, each for so many seconds.

    Returns the segments that any said were written, and how many were killed.
    """
    reading, writing = os.pipe()
    started, killed = time.perf_counter(), 0
    children = [_fork(lambda: scenario.act(store, lambda index: os.write(writing, bytes([index])))) for _ in lives]
    for child, seconds in zip(children, sorted(lives), strict=True):
        time.sleep(max(0.0, started + seconds - time.perf_counter()))
        os.kill(child, signal.SIGKILL)
        killed += _was_killed(os.waitpid(child, 0)[1])
    os.close(writing)
    acknowledged = set(os.read(reading, 1000))
    os.close(reading)
    return acknowledged, killed


def kill_at_steps(scenario: Scenario, folder: Path, stride: int = 1, seed: int = 0) -> tuple[int, list[str]]:
    """Kill the command before its first step on the disk, its second (or every `stride`-th) and so on to its end."""
    faults: list[str] = []
    with scenario.writing():
        expected = Expected(scenario, folder)
        step, done = random.Random(seed).randrange(stride), 0
        while True:
            store = scenario.start(folder / f"step-{step}")
            _, status = os.waitpid(_fork(lambda: _act_until(step, scenario, store)), 0)  # noqa: B023
            if not _was_killed(status):
                return done, faults
            faults += [f"step {step}: {fault}" for fault in expected.faults_after(store, frozenset())]
            scenario.act(store, ignore)
            faults += [f"step {step}: {fault}" for fault in expected.faults_at_the_end(store)]
            shutil.rmtree(store)
            step, done = step + stride, done + 1


def _act_until(step: int, scenario: Scenario, store: Path) -> None:
    Death(step)
    scenario.act(store, ignore)


def _fork(action: Callable[[], object]) -> int:
    """Start a child that acts and exits without cleaning up, as a killed one would."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def _was_killed(status: int) -> bool:
    """Whether a child was killed; one that failed by itself proves nothing, so it is an error here."""
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError("a command failed that nothing interrupted")
    return os.WIFSIGNALED(status)


class Death:
    """Kills this process before the n-th change that it makes on a disk."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        for name in ("mkdir", "write", "fsync", "link", "unlink", "rmdir", "rename", "replace", "close"):
            setattr(os, name, self._deadly(getattr(os, name)))

    def _deadly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
            return function(*args, **kwargs)

        return step


def main(command: str, folder: str, name: str, *numbers: str) -> None:
    """Do what the command says and print what came of it."""
    first, seed = map(int, numbers)
    scenario = scenario_of(name, Path(folder))
    if command == "random":
        kills, faults = kill_at_random(scenario, Path(folder), first, seed)
        lines = [f"{kills} kills, {len(faults)} violations"]
    else:
        steps, faults = kill_at_steps(scenario, Path(folder), first, seed)
        lines = [f"{steps} steps, {len(faults)} violations"]
    sys.stdout.write("\n".join([*lines, *faults]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
