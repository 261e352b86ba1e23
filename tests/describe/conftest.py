"""A store of the tiny corpus, and what made it."""

from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.config import config_from_tables
from gradsae_fast.extract import extract


@pytest.fixture(scope="session")
def scored(
    tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Scores of the tiny corpus at layer 1, to be read only."""
    path = tmp_path_factory.mktemp("described") / "scores"
    tables: dict[str, Any] = {
        "model": {"path": str(tiny_model_folder)},
        "sae": {"path": str(tiny_sae_folder)},
        "corpus": {"path": str(tiny_corpus), "context_length": 64, "overlap": 16},
        "store": {"path": str(path), "precision_bits": 23},
        "run": {"tokens_per_batch": 256, "threads": 1, "force": True},
    }
    extract(config_from_tables(tables))
    return path
