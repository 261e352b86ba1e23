"""Stores for the tests: an empty writer, and a finished small store."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.store import ScoreWriter
from tests.store.corpora import CORPORA, write_at_once, write_corpus
from tests.store.synthetic import IDENTITY, SITE, make_segment

OpenWriter = Callable[..., ScoreWriter]
CopyOf = Callable[..., Path]


@pytest.fixture
def open_writer(tmp_path: Path) -> OpenWriter:
    """Open the writer of `tmp_path/scores`, of two segments unless told otherwise."""

    def open_it(**settings: Any) -> ScoreWriter:
        return ScoreWriter.create_or_resume(
            settings.pop("path", tmp_path / "scores"),
            **{"run": {"host": "here"}, "identity": IDENTITY, "num_segments": 2, **settings},
        )

    return open_it


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original of `finished`."""
    path = tmp_path_factory.mktemp("store") / "scores"
    with ScoreWriter.create_or_resume(path, run={"host": "here"}, identity=IDENTITY, num_segments=2) as writer:
        for index in range(2):
            writer.write(make_segment(index))
        writer.write_dictionary(["the", " of", "\udce9"], {SITE: np.arange(64, dtype=np.float32)})
        writer.write_facts("gate", {"passed": True})
    return path


@pytest.fixture(scope="session")
def corpora_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The originals of `copy_of`."""
    folder = tmp_path_factory.mktemp("corpora")
    for corpus in CORPORA:
        write_corpus(folder / corpus, corpus)
    write_at_once(folder / "whole")
    return folder


@pytest.fixture
def copy_of(corpora_once: Path, tmp_path: Path) -> CopyOf:
    """A complete store of one corpus, or of the "whole" of them, below `tmp_path`, under its own or another name."""

    def copy(corpus: str, name: str | None = None) -> Path:
        return Path(shutil.copytree(corpora_once / corpus, tmp_path / (name or corpus)))

    return copy


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A store of two segments with a dictionary and facts, in the folder that `open_writer` opens."""
    return Path(shutil.copytree(finished_once, tmp_path / "scores"))
