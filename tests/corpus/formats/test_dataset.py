import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.errors import CorpusError


class FakeDataset:
    """What `load_dataset` gives, as far as it is used here."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for first in range(0, len(self.rows), batch_size):
            run = self.rows[first : first + batch_size]
            yield {name: [row[name] for row in run] for name in run[0]}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    recorded: list[tuple[Any, ...]] = []

    def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool) -> FakeDataset:
        recorded.append((name, subset, split, streaming))
        if split == "missing":
            raise ValueError("Unknown split")
        return FakeDataset([{"text": f"t{i}", "n": i} for i in range(600)])

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return recorded


def test_a_hub_dataset_is_read_by_name_with_or_without_prefix(calls: list[tuple[Any, ...]]) -> None:
    corpus = open_corpus("hf://owner/name", subset="en", split="test")
    documents = list(corpus)
    assert [document.text for document in documents] == [f"t{i}" for i in range(600)]
    assert (documents[300].key, documents[300].metadata) == ("hf://owner/name:300", {"n": 300})
    assert corpus.manifest() == open_corpus("owner/name").manifest()
    assert calls == [("owner/name", "en", "test", False), ("owner/name", None, "train", False)]


def test_the_first_documents_of_a_dataset_are_streamed(calls: list[tuple[Any, ...]]) -> None:
    assert len(list(open_corpus("name", max_documents=3))) == 3
    assert calls == [("name", None, "train", True)]


def test_an_existing_folder_wins_over_a_dataset_of_its_name(
    calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "a.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert [document.text for document in open_corpus("name")] == ["mine"]
    assert calls == []


@pytest.mark.usefixtures("calls")
def test_a_dataset_that_cannot_be_loaded_says_why() -> None:
    with pytest.raises(CorpusError, match=r"'owner/name' .*split 'missing'.* Unknown split; check its name"):
        open_corpus("owner/name", split="missing")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"no such file or folder.*pip install 'gradsae-fast\[datasets\]'"):
        open_corpus("owner/name")
