"""Stores for the tests: an empty writer, and a finished small store."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.store import ScoreWriter
from tests.store.synthetic import IDENTITY, SITE, make_segment

OpenWriter = Callable[..., ScoreWriter]


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


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A store of two segments with a dictionary and facts, in the folder that `open_writer` opens."""
    return Path(shutil.copytree(finished_once, tmp_path / "scores"))
