"""Commands that make one store larger: several workers at once, a further corpus appended, two stores merged."""

from pathlib import Path

import numpy as np

from benchmarks.durability.everything import write_everything
from benchmarks.durability.scenario import Scenario
from benchmarks.durability.small_run import NUM_SEGMENTS, Acknowledge, ignore, small_segment
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.changes.merge import merge_segments
from tests.store.synthetic import IDENTITY, SITE

CORPUS, NUM_APPENDED = "2c3d", 3


def workers(folder: Path) -> Scenario:
    """Two workers write the same segments of one store at the same time."""
    return Scenario(name="workers", act=_share, writers=2)


def _share(store: Path, acknowledge: Acknowledge) -> None:
    """Write as one of many, every segment that nobody has committed yet."""
    with ScoreWriter.create_or_resume(
        store, run={}, identity=IDENTITY, num_segments=NUM_SEGMENTS, shared=True
    ) as writer:
        writer.write_dictionary(["a", "b"], {SITE: np.ones(16, np.float32)})
        writer.keep_facts("gate", {"passed": True})
        for index in range(NUM_SEGMENTS):
            if not writer.is_committed(index):
                writer.write(small_segment(index))
            acknowledge(index)


def append(folder: Path) -> Scenario:
    """A second corpus is appended to a complete store that has everything."""
    before = folder / "before-append"
    write_everything(before)
    return Scenario(name="append", before=before, act=_append)


def merge(folder: Path) -> Scenario:
    """A store that has everything is merged with one of another corpus; neither is touched."""
    sources = (folder / "merge-first", folder / "merge-second")
    write_everything(sources[0])
    _write(sources[1], ignore, append=False)

    def act(store: Path, acknowledge: Acknowledge) -> None:
        merge_segments(sources, store, on_segment=lambda done, of: acknowledge(done - 1))

    return Scenario(name="merge", act=act, untouched=sources)


def _append(store: Path, acknowledge: Acknowledge) -> None:
    _write(store, acknowledge, append=True)


def _write(store: Path, acknowledge: Acknowledge, *, append: bool) -> None:
    """Write the segments of the second corpus that are not there yet."""
    identity = {**IDENTITY, "corpus": CORPUS}
    with ScoreWriter.create_or_resume(
        store, run={}, identity=identity, num_segments=NUM_APPENDED, append=append
    ) as writer:
        for index in sorted(set(range(NUM_APPENDED)) - writer.committed):
            writer.write(small_segment(index, corpus=CORPUS))
            acknowledge(writer.generation.first_segment + index)
