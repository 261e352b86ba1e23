"""A small run of the store's writer, to be interrupted: four segments, a dictionary and a sidecar."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreWriter, open_scores, verify
from gradsae_fast.store.arrays import encode_array
from gradsae_fast.store.encoding import Encoding
from gradsae_fast.store.layout import TOKENS
from tests.store.synthetic import IDENTITY, SITE, make_segment

NUM_SEGMENTS = 4


def write_all(store: Path, acknowledge: Callable[[int], object] = lambda index: None) -> None:
    """Write everything, or what an interrupted run did not get to; `acknowledge` is told of each segment written."""
    run = {"process": os.getpid()}
    with ScoreWriter.create_or_resume(store, run=run, identity=IDENTITY, num_segments=NUM_SEGMENTS) as writer:
        writer.write_dictionary(["a", "b"], {SITE: np.ones(16, np.float32)})
        writer.write_facts("gate", {"passed": True})
        for index in sorted(set(range(NUM_SEGMENTS)) - writer.committed):
            writer.write(make_segment(index, num_tokens=12, num_documents=2, num_latents=16))
            acknowledge(index)


def small_objects(segment: SegmentScores, encoding: Encoding) -> Iterator[tuple[str, bytes]]:
    """Stand in for the objects of a segment by two arrays: a protocol does not know what it carries."""
    for name in ("a/b", "c"):
        for key, data in encode_array(np.arange(segment.index + 3), TOKENS[0], encoding.profile).items():
            yield f"{name}/{key}", data


def digests(store: Path) -> dict[int, str]:
    """The digests of the segments that a reader sees; none of a run that was interrupted before its first."""
    if not (store / "run.json").exists() or not (store / "commits").exists():
        return {}
    return {segment.index: segment.digest for segment in open_scores(store).segments}


def faults_after(acknowledged: set[int] | frozenset[int], store: Path, expected: dict[int, str]) -> list[str]:
    """What is wrong with an interrupted store: a segment that is lost, not whole, or not as it must be."""
    visible = digests(store)
    faults = [str(fault) for fault in verify(store)] if visible else []
    if lost := acknowledged - visible.keys():
        faults.append(f"segments {sorted(lost)} were acknowledged and are lost")
    if visible.items() - expected.items():
        faults.append("a visible segment has other bytes")
    return faults


def faults_at_the_end(store: Path, expected: dict[int, str]) -> list[str]:
    """What is wrong with a store that was interrupted and completed."""
    faults = [f"at the end, {fault}" for fault in verify(store)]
    if digests(store) != expected:
        faults.append("at the end, the store has other bytes")
    if len(list((store / "segments").iterdir())) != NUM_SEGMENTS or list(store.rglob(".tmp-*")):
        faults.append("at the end, something uncommitted is left")
    return faults
