"""Stores of several corpora, and a store of all of them at once: the same segments under the same numbers."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreWriter
from tests.store.synthetic import IDENTITY, SITE, make_segment

OLD, NEW, NEWER = "0a1b", "2c3d", "4e5f"  # corpora
LENGTHS = {OLD: 4, NEW: 3, NEWER: 2}  # segments of their plans
CORPORA = tuple(LENGTHS)
TOKENS = ["the", " of", "\udce9"]


def corpus_segment(corpus: str, number: int, index: int | None = None) -> SegmentScores:
    """Segment `number` of a corpus, whose documents have keys of their own; under another number where one is given."""
    segment = make_segment(number, num_latents=24, seed=int(corpus[0]))
    keys = [f"{corpus}-{number}-{slot}" for slot in range(len(segment.documents.key))]
    documents = replace(segment.documents, key=keys)
    return replace(segment, index=number if index is None else index, documents=documents)


def identity_of(corpus: str) -> dict[str, Any]:
    """The identity of the run over a corpus."""
    return {**IDENTITY, "corpus": {"plan": corpus, "context_length": 64}}


def open_corpus_writer(path: Path, corpus: str, **settings: Any) -> ScoreWriter:
    """Open a store for writing a corpus."""
    run = {"config": {"corpus": {"path": f"{corpus}.jsonl"}}}
    return ScoreWriter.create_or_resume(
        path, **{"run": run, "identity": identity_of(corpus), "num_segments": LENGTHS.get(corpus), **settings}
    )


def write_corpus(
    path: Path, corpus: str, numbers: Iterable[int] | None = None, *, append: bool = False, **settings: Any
) -> Path:
    """Write segments of a corpus to a store, all that are not there unless `numbers` are given."""
    with open_corpus_writer(path, corpus, append=append, **settings) as writer:
        writer.write_dictionary(TOKENS, {SITE: np.arange(24, dtype=np.float32)})
        writer.keep_facts("gate", {"median_norms": {SITE: 1.5}, "checks": []})
        writer.keep_facts(writer.generation.name_of("plan"), {"key": corpus, "plan": {}})
        for number in sorted(set(range(LENGTHS[corpus]) if numbers is None else numbers) - writer.committed):
            writer.write(corpus_segment(corpus, number))
    return path


def write_at_once(path: Path, corpora: Iterable[str] = CORPORA) -> Path:
    """Write a store of one run over several corpora, one after the other."""
    segments = [(corpus, number) for corpus in corpora for number in range(LENGTHS[corpus])]
    with open_corpus_writer(path, OLD, num_segments=len(segments)) as writer:
        writer.write_dictionary(TOKENS, {SITE: np.arange(24, dtype=np.float32)})
        for index, (corpus, number) in enumerate(segments):
            writer.write(corpus_segment(corpus, number, index))
    return path
