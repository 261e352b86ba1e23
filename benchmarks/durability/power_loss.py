"""Power cuts: the disk of a command is cloned at random moments as a power cut may have left it, and the command runs
again.

What must hold of every clone, and in the end, is in `scenario`; also where power fails once more while the command
resumes. Half of the commands are killed and started again on the same disk before power is cut: what the first process
did last is there for the second one to see, and is not sure. What a command leaves that came to its end must be sure.
"""

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.durability.disk import Disk, Recorder
from benchmarks.durability.scenario import Expected, Scenario
from benchmarks.durability.small_run import ignore
from gradsae_fast.errors import GradsaeError
from gradsae_fast.store.places import durable
from gradsae_fast.store.places.durable import TEMPORARY
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
    is_finished: bool = False  # whether the command had come to its end


class Killed(BaseException):
    """The process is gone: nothing that it does from here on, cleaning up included, reaches the disk."""


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
            for clone in record(scenario, start, moments, chance, _sometimes(num_steps, chance))[0]:
                faults = faults_of(scenario, clone, expected, num_steps, chance)
                violations += [f"seed {seed}, clone {done}: {fault}" for fault in faults]
                done += 2
            shutil.rmtree(place)
    return Outcome(clones=done, violations=tuple(violations))


def _sometimes(num_steps: int, chance: random.Random) -> int | None:
    """The step at which a command is killed, or None."""
    return chance.randint(0, num_steps) if chance.random() < 0.5 else None


def record(
    scenario: Scenario, start: Clone, moments: Sequence[int], chance: random.Random, killed_at: int | None = None
) -> tuple[list[Clone], int]:
    """Run the command on a store and clone its disk before these steps; return the clones and the number of steps.

    For a step that the run does not come to, the clone is of its end. With `killed_at` it is the second run: one before
    it, on the same disk, was killed at that step.
    """
    disk, acknowledged = Disk(start.store), set(start.acknowledged)
    waiting, clones, num_steps, is_finished = Counter(moments), list[Clone](), 0, False
    if killed_at is not None:
        _run_until_killed(scenario, start.store, disk, acknowledged, killed_at, is_early=chance.random() < 0.3)

    def clone(times: int) -> None:
        for _ in range(times):
            target = start.store.parent / f"after-{start.store.name}-{len(clones)}"
            disk.write_clone(chance, target)
            clones.append(Clone(store=target, acknowledged=frozenset(acknowledged), is_finished=is_finished))

    def on_step(makes_sure: bool) -> None:
        nonlocal num_steps
        clone(waiting.pop(num_steps, 0))
        num_steps += 1

    with Recorder(disk, on_step).recording():
        scenario.act(start.store, acknowledged.add)
    is_finished = True
    clone(waiting.total())
    real = {path: path.read_bytes() for path in start.store.rglob("*") if path.is_file()}
    if disk.files() | {start.store / LOCK_FILE: b""} != real | {start.store / LOCK_FILE: b""}:
        raise AssertionError("the recorder missed a change; what it cloned says nothing")
    return clones, num_steps


def _run_until_killed(
    scenario: Scenario, store: Path, disk: Disk, acknowledged: set[int], moment: int, *, is_early: bool
) -> None:
    """Run the command until it is killed at a step (`is_early`), or before the next folder that it syncs.

    There a name is most likely to be seen and not to be sure.
    """
    num_steps, is_dead = 0, False

    def on_step(makes_sure: bool) -> None:
        nonlocal num_steps, is_dead
        is_dead = is_dead or (num_steps >= moment and (is_early or makes_sure))
        num_steps += 1
        if is_dead:
            raise Killed

    with suppress(Killed), Recorder(disk, on_step).recording():
        scenario.act(store, acknowledged.add)


def faults_of(scenario: Scenario, clone: Clone, expected: Expected, num_steps: int, chance: random.Random) -> list[str]:
    """What does not hold of a clone, of the store after the same command again, and of a clone of that."""
    moment = chance.choice((chance.randint(0, num_steps // 2), num_steps))  # the latter is most often its end
    faults = []
    try:
        faults += _faults_of_clone(clone, expected)
        again = record(scenario, clone, [moment], chance, _sometimes(num_steps // 2, chance))[0]
        faults += expected.faults_at_the_end(clone.store)
        for second in again:
            faults += _faults_of_clone(second, expected)
            scenario.act(second.store, ignore)
            faults += expected.faults_at_the_end(second.store)
    except GradsaeError as error:
        faults.append(f"{type(error).__name__}: {error}")
    return faults


def _faults_of_clone(clone: Clone, expected: Expected) -> list[str]:
    faults = expected.faults_after(clone.store, clone.acknowledged)
    if clone.is_finished:  # what was removed is gone for good then, too, but for temporary files
        faults += [fault for fault in expected.faults_at_the_end(clone.store) if TEMPORARY not in fault]
    return faults
