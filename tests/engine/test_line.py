"""The line of a run: what is refused before minutes of loading, and what is told when it goes on."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.append import append
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import BusyError, SaeError, StoreError
from gradsae_fast.extract import extract
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.places.lock import locked

Configure = Callable[..., ExtractConfig]


@pytest.fixture
def without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure of the test."""
    monkeypatch.setattr("gradsae_fast.prepare.load_model", lambda _config: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("without_loading")
def test_a_folder_that_is_no_store_is_refused_before_a_model_is_loaded(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="is not empty and not a store"):
        extract(configure(store={"path": str(tmp_path)}))


@pytest.mark.usefixtures("without_loading")
def test_a_damaged_run_record_is_told_before_a_model_is_loaded(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        extract(configure())


@pytest.mark.usefixtures("without_loading")
def test_object_storage_without_its_extra_is_told_before_a_model_is_loaded(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match="s3"):
        extract(configure(store={"path": "s3://bucket/scores"}))


@pytest.mark.usefixtures("without_loading")
def test_a_folder_that_may_not_be_looked_into_is_told_before_a_model_is_loaded(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, exists = configure(), Path.exists

    def refuse(path: Path) -> bool:
        if path.name == "run.json":
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(StoreError, match="is read-only for this user"):
        extract(config)


@pytest.mark.usefixtures("without_loading")
def test_another_writer_is_told_before_a_model_is_loaded(configure: Configure) -> None:
    config = configure()
    path = Path(config.store.path)
    ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=1).close()
    with locked(path), pytest.raises(BusyError, match="is being written by process"):
        extract(config)


@pytest.mark.usefixtures("without_loading")
def test_an_sae_that_is_nowhere_is_told_before_a_model_is_loaded(configure: Configure) -> None:
    with pytest.raises(SaeError, match=r"there is no local path './sea'"):
        extract(configure(sae={"path": "./sea"}))


def test_only_what_goes_on_is_called_resuming(configure: Configure) -> None:
    told: list[str] = []
    config = configure()
    config = replace(config, corpus=replace(config.corpus, max_documents=2))
    extract(config)
    documents: Any = [{"id": "new", "text": "Peace abroad and work at home."}]
    for _ in range(2):
        append(config.store.path, documents=documents, run={"force": True}, on_message=told.append)
    said = [line for line in told if "the gate " in line]
    begun, again = "the gate failed (", "resuming: 1 segment is committed; the gate failed ("
    assert [line.startswith(words) for line, words in zip(said, (begun, again), strict=True)] == [True, True], said
