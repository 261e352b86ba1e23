"""Writers that are killed: with SIGKILL, at random moments or before every step on the disk, and run again.

What must hold after every kill: a segment whose `write` had returned is visible, and every visible segment has the
bytes of an uninterrupted run. Of every store in the end: the same run has completed it to equal bytes, `verify` finds
nothing, and nothing uncommitted is left.

A child is forked for each life of a writer, so this process must have no threads; call it in one of its own:

    python -m benchmarks.durability.kills random FOLDER KILLS SEED
    python -m benchmarks.durability.kills steps FOLDER

prints a line, what was done, and a line for each broken promise.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.durability.small_run import digests, faults_after, faults_at_the_end, small_objects, write_all
from gradsae_fast.store import writer


def kill_at_random(folder: Path, kills: int, seed: int = 0) -> list[str]:
    """Kill writers of small stores so many times, each resuming the last one's store until it is complete."""
    write_all(folder / "uninterrupted")  # compiles, so that children write from their first moment
    expected = digests(folder / "uninterrupted")
    started = time.perf_counter()
    os.waitpid(_fork(lambda: write_all(folder / "timed")), 0)
    whole = time.perf_counter() - started
    chance, faults, done, path = random.Random(seed), list[str](), 0, folder / "interrupted"
    while done < kills:
        acknowledged, killed = _one_life(path, chance.uniform(0, 0.6 * whole))
        done += killed
        faults += faults_after(acknowledged, path, expected)
        if digests(path).keys() == expected.keys() or done == kills:
            write_all(path)
            faults += faults_at_the_end(path, expected)
            shutil.rmtree(path)
    return faults


def _one_life(path: Path, seconds: float) -> tuple[set[int], bool]:
    """Run a writer for so long; return the segments that it said were written, and whether it was killed."""
    reading, writing = os.pipe()
    child = _fork(lambda: write_all(path, lambda index: os.write(writing, bytes([index]))))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(writing)
    acknowledged = set(os.read(reading, 100))
    os.close(reading)
    return acknowledged, os.WIFSIGNALED(status)


def kill_at_every_step(folder: Path) -> tuple[int, list[str]]:
    """Kill a writer before its first step on the disk, its second, and so on until one is through."""
    faults: list[str] = []
    with mock.patch.object(writer, "segment_objects", small_objects):
        write_all(folder / "uninterrupted")
        expected = digests(folder / "uninterrupted")
        for step in count():
            path = folder / f"step-{step}"
            _, status = os.waitpid(_fork(lambda: _write_until(step, path)), 0)  # noqa: B023
            if not os.WIFSIGNALED(status):
                return step, faults
            faults += faults_after(set(), path, expected)
            write_all(path)
            faults += faults_at_the_end(path, expected)
            shutil.rmtree(path)
    raise AssertionError("a writer never came to its end")


def _write_until(step: int, path: Path) -> None:
    Death(step)
    write_all(path)


def _fork(action: Callable[[], None]) -> int:
    """Start a child that acts and exits without cleaning up, as a killed one would."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return child


class Death:
    """Kills this process before the n-th change that it makes on a disk."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        for name in ("mkdir", "write", "fsync", "link", "unlink", "replace", "close"):
            setattr(os, name, self._deadly(getattr(os, name)))

    def _deadly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
            return function(*args, **kwargs)

        return step


def main(command: str, folder: str, *numbers: str) -> None:
    """Do what the command says and print what came of it."""
    if command == "random":
        kills, seed = map(int, numbers)
        faults = kill_at_random(Path(folder), kills, seed)
        lines = [f"{kills} kills, {len(faults)} violations"]
    else:
        steps, faults = kill_at_every_step(Path(folder))
        lines = [f"{steps} steps, {len(faults)} violations"]
    sys.stdout.write("\n".join([*lines, *faults]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
