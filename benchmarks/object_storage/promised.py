"""The run that the trials write, and what must hold of a store in a bucket at any moment.

(1) What was acknowledged is visible. (2) No segment is visible half, or with other bytes than in an uninterrupted run.
(3) A reader gets the numbers that were written, or an error. (4) Run again to its end, the store is that of an
uninterrupted run. (5) An error names the object or the store.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.durability.contents import numbers
from benchmarks.durability.small_run import NUM_SEGMENTS, small_segment
from gradsae_fast.errors import GradsaeError
from gradsae_fast.store import ScoreWriter, open_scores, verify
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records.identity import RUN_FILE
from tests.store.synthetic import IDENTITY, SITE


def write(store: str | Place, acknowledge: Callable[[int], object], *, shared: bool = False, seed: int = 0) -> None:
    """Write the run, or what an interrupted one did not get to; `acknowledge` is told of each segment written."""
    with ScoreWriter.create_or_resume(
        store, run={}, identity=IDENTITY, num_segments=NUM_SEGMENTS, shared=shared
    ) as writer:
        writer.write_dictionary(["a", "b"], {SITE: np.ones(16, np.float32)})
        writer.write_facts("gate", {"passed": True})
        for index in sorted(set(range(NUM_SEGMENTS)) - writer.committed):
            writer.write(small_segment(index, seed))
            acknowledge(index)


class Promised:
    """What an uninterrupted run leaves, from one that was written to a disk."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        write(folder / f"uninterrupted-{seed}", lambda _: None, seed=seed)
        segments = open_scores(folder / f"uninterrupted-{seed}").segments
        self.digests = {segment.index: segment.digest for segment in segments}
        self.numbers = {segment.index: numbers(segment) for segment in segments}

    def broken(self, store: str, acknowledged: Collection[int], *, complete: bool = False) -> list[str]:
        """Return which promises a store breaks; to be asked without faults in between."""
        place = place_of(store)
        if not (place / RUN_FILE).exists():
            return [f"{store}: acknowledged {sorted(acknowledged)}, and there is no store"] if acknowledged else []
        if damaged := [f"{store}: {fault}" for fault in verify(place)]:
            return damaged
        found = []
        seen = {segment.index: segment for segment in open_scores(place, use_index=False).segments}
        if lost := set(acknowledged) - seen.keys():
            found.append(f"{store}: acknowledged and lost: {sorted(lost)}")
        if complete and seen.keys() != self.digests.keys():
            found.append(f"{store}: run to its end, it has segments {sorted(seen)}")
        for index, segment in seen.items():
            if segment.digest != self.digests[index] or numbers(segment) != self.numbers[index]:
                found.append(f"{store}: segment {index} is not that of an uninterrupted run")
        return found

    def misread(self, store: str) -> list[str]:
        """Read everything as a reader would, through whatever lies between; return what was read wrong."""
        found = []
        try:
            for segment in open_scores(store).segments:
                if numbers(segment) != self.numbers[segment.index]:
                    found.append(f"{store}: segment {segment.index} was read with other numbers")
            found += [f"{store}: taken for damage: {fault}" for fault in verify(store)]
        except GradsaeError as error:
            found += unnamed(error, store)
        return found


def unnamed(error: GradsaeError, store: str) -> list[str]:
    """Return what is wrong with an error: that it does not name the store, or shows a secret."""
    text = str(error)
    return [] if store in text and "trialsecret" not in text else [f"{store}: an error does not say where: {text}"]


def repeat(action: Callable[[], Any], store: str, times: int) -> tuple[bool, list[str]]:
    """Do something until it succeeds, so often at most; return whether it did, and what is wrong with its errors."""
    found: list[str] = []
    for _ in range(times):
        try:
            action()
        except GradsaeError as error:
            found += unnamed(error, store)
        else:
            return True, found
    return False, found
