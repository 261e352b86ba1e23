"""Power cuts: a writer's disk is cloned at random moments as a power cut may have left it, and the writer runs again.

What must hold of every clone:

    every segment whose `write` had returned is visible, and every visible segment has the bytes of an uninterrupted run
    `verify` finds nothing
    the same run again completes the store, to equal bytes; also where power fails once more while it resumes

The segments carry little: what is tested is the protocol, which does not know what it carries.
"""

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.durability.disk import Disk, Recorder
from benchmarks.durability.small_run import digests, faults_after, faults_at_the_end, small_objects, write_all
from gradsae_fast.errors import GradsaeError
from gradsae_fast.store import durable, writer
from gradsae_fast.store.lock import LOCK_FILE

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


def cut_power(folder: Path, clones: int, seed: int = 0) -> Outcome:
    """Clone, check and resume so many times or a few more, in `folder`, which must be empty."""
    with (
        mock.patch.object(writer, "segment_objects", small_objects),
        mock.patch.object(durable, "_SYNC_THREADS", 1),  # so that a seed gives the same clones again
    ):
        write_all(folder / "uninterrupted")
        expected = digests(folder / "uninterrupted")
        _, num_steps = record(Clone(store=folder / "counted", acknowledged=frozenset()), [], random.Random())
        done, violations = 0, list[str]()
        while done < clones:
            chance = random.Random(f"{seed} {done}")
            place = folder / "run"
            place.mkdir()
            moments = [chance.randint(0, num_steps) for _ in range(CLONES_PER_RUN)]
            for clone in record(Clone(store=place / "scores", acknowledged=frozenset()), moments, chance)[0]:
                faults = faults_of(clone, expected, chance.randint(0, num_steps // 2), chance)
                violations += [f"seed {seed}, clone {done}: {fault}" for fault in faults]
                done += 2
            shutil.rmtree(place)
    return Outcome(clones=done, violations=tuple(violations))


def record(start: Clone, moments: Sequence[int], chance: random.Random) -> tuple[list[Clone], int]:
    """Run the writer on a store and clone its disk before these steps; return the clones and the number of steps.

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
        write_all(start.store, acknowledged.add)
    clone(waiting.total())
    real = {path: path.read_bytes() for path in start.store.rglob("*") if path.is_file()}
    if disk.files() | {start.store / LOCK_FILE: b""} != real | {start.store / LOCK_FILE: b""}:
        raise AssertionError("the recorder missed a change; what it cloned says nothing")
    return clones, num_steps


def faults_of(clone: Clone, expected: dict[int, str], moment: int, chance: random.Random) -> list[str]:
    """What does not hold of a clone, of the store after the same run again, and of a clone of that run at a moment."""
    faults = []
    try:
        faults += faults_after(clone.acknowledged, clone.store, expected)
        again = record(clone, [moment], chance)[0]
        faults += faults_at_the_end(clone.store, expected)
        for second in again:
            faults += faults_after(second.acknowledged, second.store, expected)
            write_all(second.store)
            faults += faults_at_the_end(second.store, expected)
    except GradsaeError as error:
        faults.append(f"{type(error).__name__}: {error}")
    return faults
