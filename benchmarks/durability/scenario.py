"""What can be interrupted: a command on a store, what is there before it, and what must hold at any moment.

    grows     what was visible stays visible, what is added has the bytes of an uninterrupted run
    at once   everything is as before, or everything is as after
    heals     as `grows`, but of what was visible before the damaged parts may go

Whichever: what was acknowledged is visible, every visible segment reads as in an uninterrupted run, `verify` finds
nothing, and the same command again leads to the bytes of an uninterrupted run, with nothing half-written left.
"""

import shutil
from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from benchmarks.durability.contents import contents, numbers, view
from benchmarks.durability.small_run import Acknowledge, ignore, small_objects, write_all
from gradsae_fast.store import open_scores, verify, writer
from gradsae_fast.store.places.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One command to interrupt; `act` runs it, and run again completes it."""

    name: str
    act: Callable[[Path, Acknowledge], object]
    before: Path | None = None  # the store that it starts from; None: there is none yet
    promise: Literal["grows", "at once", "heals"] = "grows"
    untouched: tuple[Path, ...] = ()  # stores that it reads and must leave as they are
    writers: int = 1  # processes that run it at once, where it is killed at random
    is_real: bool = True  # whether segments hold their arrays, or two small ones in place of them

    def start(self, store: Path) -> Path:
        """Put what is there before the command at `store`."""
        if self.before is not None:
            shutil.copytree(self.before, store)
        return store

    def writing(self) -> AbstractContextManager[Any]:
        """Where a writer writes what this scenario says."""
        return nullcontext() if self.is_real else mock.patch.object(writer, "segment_objects", small_objects)


def extraction(is_real: bool) -> Scenario:
    """A store is written from nothing."""
    return Scenario(name="extract", act=write_all, is_real=is_real)


class Expected:
    """What a scenario leads to where nothing interrupts it, and the faults of stores where something did."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        store = scenario.start(folder / "uninterrupted")
        self._promise = scenario.promise
        self._before = view(store)
        self._numbers = _numbers(store) if scenario.is_real and scenario.promise != "heals" else {}
        scenario.act(store, ignore)
        self.after = view(store)
        if scenario.is_real:
            self._numbers |= _numbers(store)
        self._contents = contents(store)
        self._untouched = {path: contents(path) for path in scenario.untouched}
        self._is_real = scenario.is_real
        self._read: set[Place] = set()

    def faults_after(self, store: Path, acknowledged: Set[int]) -> list[str]:
        """What is wrong with a store whose command was interrupted after it had acknowledged these segments."""
        seen = view(store)
        faults = [str(fault) for fault in verify(store)] if seen and self._promise != "heals" else []
        if forgotten := {f"segment {index}" for index in acknowledged} - seen.keys():
            faults.append(f"acknowledged and lost: {', '.join(sorted(forgotten))}")
        if self._promise == "at once":
            if seen not in (self._before, self.after):
                faults.append(f"neither as before nor as after: {sorted(seen)}")
        elif wrong := seen.items() - self.after.items():
            faults.append(f"other bytes than in an uninterrupted run: {sorted(dict(wrong))}")
        elif self._promise == "grows" and (lost := self._before.items() - seen.items()):
            faults.append(f"was there before and is lost: {sorted(dict(lost))}")
        if self._is_real and self._promise != "heals" and seen:
            faults += self._misread(store)
        return faults

    def _misread(self, store: Path) -> list[str]:
        """Segments that read as other numbers; each is read once, as `verify` has seen that its bytes are the same."""
        new = [s for s in open_scores(store, use_index=False).segments if s.folder not in self._read]
        self._read |= {segment.folder for segment in new}
        wrong = [segment for segment in new if numbers(segment) != self._numbers.get(segment.digest)]
        return [f"{segment.label} reads as other numbers" for segment in wrong]

    def faults_at_the_end(self, store: Path) -> list[str]:
        """What is wrong with a store whose command was interrupted, and run again to its end."""
        faults = [f"at the end, {fault}" for fault in verify(store)]
        found = contents(store)
        faults += [f"at the end, too much or with other bytes: {name}" for name, _ in found - self._contents]
        faults += [f"at the end, too little or with other bytes: {name}" for name, _ in self._contents - found]
        faults += [
            f"at the end, {path.name} was changed" for path, had in self._untouched.items() if contents(path) != had
        ]
        return faults


def _numbers(store: Path) -> dict[str, str]:
    """What readers get from each visible segment, by its digest."""
    if not view(store):
        return {}
    return {segment.digest: numbers(segment) for segment in open_scores(store, use_index=False).segments}
