"""A small run of the store's writer, to be interrupted: four segments, a dictionary and a sidecar."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.arrays.encoding import Encoding
from gradsae_fast.store.arrays.stored import encode_array
from gradsae_fast.store.format.layout import TOKENS
from tests.store.synthetic import IDENTITY, SITE, make_segment

NUM_SEGMENTS = 4

Acknowledge = Callable[[int], object]


def ignore(index: int) -> None:
    """An `Acknowledge` that nobody listens to."""


def write_all(store: Path, acknowledge: Acknowledge = ignore, seed: int = 0) -> None:
    """Write everything, or what an interrupted run did not get to; `acknowledge` is told of each segment written."""
    run = {"process": os.getpid()}
    with ScoreWriter.create_or_resume(store, run=run, identity=IDENTITY, num_segments=NUM_SEGMENTS) as writer:
        writer.write_dictionary(["a", "b"], {SITE: np.ones(16, np.float32)})
        writer.write_facts("gate", {"passed": True})
        for index in sorted(set(range(NUM_SEGMENTS)) - writer.committed):
            writer.write(small_segment(index, seed))
            acknowledge(index)


def small_segment(index: int, seed: int = 0, corpus: str = "0a1b") -> SegmentScores:
    """Segment `index` of the run over a corpus; no two documents of any have one key."""
    segment = make_segment(index, num_tokens=12, num_documents=2, num_latents=16, seed=seed)
    keys = [f"{corpus}-{index}-{number}" for number in range(len(segment.documents.key))]
    return replace(segment, documents=replace(segment.documents, key=keys))


def small_objects(segment: SegmentScores, encoding: Encoding) -> Iterator[tuple[str, bytes]]:
    """Stand in for the objects of a segment by two arrays: a protocol does not know what it carries."""
    for name in ("a/b", "c"):
        for key, data in encode_array(np.arange(segment.index + 3), TOKENS[0], encoding.profile).items():
            yield f"{name}/{key}", data
