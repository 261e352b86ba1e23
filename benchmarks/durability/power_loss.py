"""Power cuts: the disk of a command is cloned at random moments as a power cut may have left it, and the command runs
again.

What must hold of every clone, and in the end, is in `scenario`; also where power fails once more while the command
resumes.
"""

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.durability.disk import Disk, Recorder
from benchmarks.durability.scenario import Expected, Scenario
from benchmarks.durability.small_run import ignore
from gradsae_fast.errors import GradsaeError
from gradsae_fast.store.places import durable
from gradsae_fast.store.places.lock import LOCK_FILE

CLONES_PER_RUN = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Clones looked at, and what was wrong with any of them."""

    clones: int
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A store as a power cut may have left it, and the segments that had been acknowledged."""

    store: Path
    acknowledged: frozenset[int]


def cut_power(scenario: Scenario, folder: Path, clones: int, seed: int = 0) -> Outcome:
    """Clone, check and resume so many times or a few more; `folder` has no other files than the scenario's."""
    with (
        scenario.writing(),
        mock.patch.object(durable, "_SYNC_THREADS", 1),  # so that a seed gives the same clones again
    ):
        expected = Expected(scenario, folder)
        start = Clone(store=scenario.start(folder / "counted"), acknowledged=frozenset())
        _, num_steps = record(scenario, start, [], random.Random())
        done, violations = 0, list[str]()
        while done < clones:
            chance = random.Random(f"{seed} {done}")
            place = folder / "run"
            place.mkdir()
            count = min(CLONES_PER_RUN, -(-(clones - done) // 2))  # each is looked at twice
            moments = [chance.randint(0, num_steps) for _ in range(count)]
            start = Clone(store=scenario.start(place / "scores"), acknowledged=frozenset())
            for clone in record(scenario, start, moments, chance)[0]:
                faults = faults_of(scenario, clone, expected, chance.randint(0, num_steps // 2), chance)
                violations += [f"seed {seed}, clone {done}: {fault}" for fault in faults]
                done += 2
            shutil.rmtree(place)
    return Outcome(clones=done, violations=tuple(violations))


def record(scenario: Scenario, start: Clone, moments: Sequence[int], chance: random.Random) -> tuple[list[Clone], int]:
    """Run the command on a store and clone its disk before these steps; return the clones and the number of steps.

    For a step that the run does not come to, the clone is of its end.
    """
    disk, acknowledged = Disk(start.store), set(start.acknowledged)
    waiting, clones, num_steps = Counter(moments), list[Clone](), 0

    def clone(times: int) -> None:
        for _ in range(times):
            target = start.store.parent / f"after-{start.store.name}-{len(clones)}"
            disk.write_clone(chance, target)
            clones.append(Clone(store=target, acknowledged=frozenset(acknowledged)))

    def on_step() -> None:
        nonlocal num_steps
        clone(waiting.pop(num_steps, 0))
        num_steps += 1

    with Recorder(disk, on_step).recording():
        scenario.act(start.store, acknowledged.add)
    clone(waiting.total())
    real = {path: path.read_bytes() for path in start.store.rglob("*") if path.is_file()}
    if disk.files() | {start.store / LOCK_FILE: b""} != real | {start.store / LOCK_FILE: b""}:
        raise AssertionError("the recorder missed a change; what it cloned says nothing")
    return clones, num_steps


def faults_of(scenario: Scenario, clone: Clone, expected: Expected, moment: int, chance: random.Random) -> list[str]:
    """What does not hold of a clone, of the store after the same command again, and of a clone of that at a moment."""
    faults = []
    try:
        faults += expected.faults_after(clone.store, clone.acknowledged)
        again = record(scenario, clone, [moment], chance)[0]
        faults += expected.faults_at_the_end(clone.store)
        for second in again:
            faults += expected.faults_after(second.store, second.acknowledged)
            scenario.act(second.store, ignore)
            faults += expected.faults_at_the_end(second.store)
    except GradsaeError as error:
        faults.append(f"{type(error).__name__}: {error}")
    return faults
