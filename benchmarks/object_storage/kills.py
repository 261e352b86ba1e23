"""Writers to a bucket that are killed with SIGKILL at random moments, and run again.

Each life is a child that is forked before this process has a client of its own, so call it in a process of its own:

    python -m benchmarks.object_storage.kills FOLDER KILLS SEED

with the server's address and credentials in the environment; prints a line, and one for each broken promise.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.object_storage.promised import Promised, write
from benchmarks.object_storage.trials import new_store


def kill_writers(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill writers so many times, each life going on with the last one's store until that is complete."""
    promised = Promised(folder)
    chance, faults, done = random.Random(seed), list[str](), 0
    whole = _timed(lambda: write(new_store(), lambda _: None))
    store, acknowledged = new_store(), set[int]()
    while done < kills:
        said, killed = _one_life(store, chance.uniform(0.05, 1.0) * whole)
        acknowledged |= said
        done += killed
        faults += _asked_in_a_child(lambda: promised.broken(store, acknowledged))  # noqa: B023
        if not killed or done == kills:
            faults += _asked_in_a_child(lambda: _finish(promised, store, acknowledged))  # noqa: B023
            store, acknowledged = new_store(), set()
    return faults


def _finish(promised: Promised, store: str, acknowledged: set[int]) -> list[str]:
    write(store, acknowledged.add)
    return promised.broken(store, acknowledged, complete=True)


def _one_life(store: str, seconds: float) -> tuple[set[int], bool]:
    """Write for so long; return the segments that were acknowledged, and whether the writer was killed."""
    reading, writing = os.pipe()
    child = _fork(lambda: write(store, lambda index: os.write(writing, bytes([index]))))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(writing)
    said = set(os.read(reading, 100))
    os.close(reading)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError("a writer failed that nothing interrupted")
    return said, os.WIFSIGNALED(status)


def _asked_in_a_child(question: Callable[[], list[str]]) -> list[str]:
    """Ask in a child, as a client and its threads do not survive a fork."""
    reading, writing = os.pipe()

    def answer() -> None:
        with os.fdopen(writing, "w", encoding="utf-8") as file:
            file.write("\n".join(question()))

    child = _fork(answer)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("a store could not be checked")
    return text.splitlines()


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    _, status = os.waitpid(_fork(action), 0)
    if status:
        raise RuntimeError("a writer failed that nothing interrupted")
    return time.perf_counter() - started


def _fork(action: Callable[[], object]) -> int:
    """Start a child that acts and exits without cleaning up."""
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


def main(folder: str, kills: str, seed: str) -> None:
    """Kill writers, and print what came of it."""
    faults = kill_writers(Path(folder), int(kills), int(seed))
    sys.stdout.write("\n".join([f"{kills} kills, {len(faults)} violations", *faults]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
