"""The corpus of the rankings' tests as a store, and a store whose texts are meant to do harm."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores
from tests.ranking.conftest import World, make_segments, make_world, write_store

SITE, OBJECTIVE = "model.layers.3", "next-token"
SIGNED_SITE = "model.layers.5"
ASKED: Mapping[str, Any] = {"site": SITE, "objective": OBJECTIVE}
RUN = {
    "saes": {SITE: {"model_name": "tiny/model-1", "hook_name": "blocks.3.hook_resid_post"}},
    "config": {"model": {"path": "elsewhere"}},
}
IDENTITY = {
    "model": {"digest": "sha256:aa"},
    "saes": {SITE: {"digest": "bb"}},
    "corpus": {"plan": "cc"},
    "method": {"preset": "gradsae"},
    "tokens": {"bos_id": 0},
}
# A lone surrogate, NUL, markup, a right-to-left override, a tab and quotes: each key holds what some format cannot.
HOSTILE = ("\ud800", "a\0b", "<script>alert(1)</script>", "\u202eabc", 'tab\t"quote",\n', "\udfff")
HARM = str.maketrans({"w": "\ud800", ".": "\0", "1": "<", "0": "\u202e"})
HOSTILE_COLUMNS = {"a/b": "slash\0", "_index": "\udfff", "num_tokens": "<b>", ".": "dot", "segment": None}


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return write(tmp_path_factory.mktemp("export") / "scores.gradsae", make_segments(world))


@pytest.fixture(scope="session")
def scaled_world() -> World:
    """A corpus of which the stored gradients are those of log p."""
    return make_world(objectives=("continuation-prob",), sites=(SITE,), columns=("party",))


@pytest.fixture(scope="session")
def scaled_store(scaled_world: World, tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return write_store(tmp_path_factory.mktemp("export") / "scaled.gradsae", scaled_world)


@pytest.fixture(scope="session")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    world = make_world(segment_documents=(3, 3), columns=("party",))
    segments = []
    for first, segment in zip((0, 3), make_segments(world), strict=True):
        keys = list(HOSTILE[first : first + 3])
        metadata = {name: [value] * 3 for name, value in HOSTILE_COLUMNS.items()}
        text = [text.translate(HARM) for text in segment.documents.text]
        documents = dataclasses.replace(segment.documents, key=keys, metadata=metadata, text=text)
        segments.append(dataclasses.replace(segment, documents=documents))
    return write(tmp_path_factory.mktemp("export") / "hostile.gradsae", segments)


def write(path: Path, segments: list[SegmentScores], *, profile: str = "compact") -> ScoreStore:
    """Write segments with the real writer, with all that a run leaves."""
    writer = ScoreWriter.create_or_resume(
        path, run=RUN, identity=IDENTITY, num_segments=len(segments), precision_bits=23, profile=profile
    )
    with writer:
        for segment in segments:
            writer.write(segment)
        num_latents = segments[0].sites[SITE].num_latents
        norms = {SITE: np.linspace(1, 2, num_latents, dtype=np.float32)}
        writer.write_dictionary([f"<token {number}>" for number in range(50)], norms)
    return open_scores(path)
