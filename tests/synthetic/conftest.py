"""A store of the tiny model over texts that are long enough to draw tokens from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import config_from_tables
from gradsae_fast.extract import extract

TEXT = "We must build roads and schools, for the children of this land. Taxes fall, farms grow, and the union stands. "


MakeStore = Callable[..., Path]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_sae_folder: Path) -> MakeStore:
    """Score documents exactly at layer 1; first windows hold 64 tokens."""

    def make(documents: Sequence[Any], sae: Path = tiny_sae_folder, **corpus: Any) -> Path:
        path = tmp_path_factory.mktemp("synthetic") / "scores"
        tables: dict[str, Any] = {
            "model": {"path": str(tiny_model_folder)},
            "sae": {"path": str(sae)},
            "corpus": {"path": "unused", "context_length": 64, "overlap": 16, **corpus},
            "store": {"path": str(path), "precision_bits": 23},
            "run": {"tokens_per_batch": 256, "threads": 1, "force": True},
        }
        extract(config_from_tables(tables), documents=documents)
        return path

    return make


@pytest.fixture(scope="session")
def store_path(make_store: MakeStore) -> Path:
    """Scores of three documents."""
    return make_store([TEXT * 2, TEXT, TEXT[::-1]])
