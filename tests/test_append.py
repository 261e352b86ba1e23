"""Another corpus is scored as the store's run was and added to it; a tiny model, on disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast import open_scores, rank_latents, verify
from gradsae_fast.append import append, append_config
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ConfigError, CorpusError, IdentityError, QueryError, StoreError
from gradsae_fast.extract import extract
from gradsae_fast.merge import merge
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.changes.drop import drop_documents
from tests.conftest import SENTENCES
from tests.store.records.test_generations import files
from tests.terminal import gradsae

# One window a batch, and no sinks: so the numbers of a document do not depend on the documents beside it.
ALONE: dict[str, Any] = {"run": {"tokens_per_batch": 1}, "score": {"sink_norm_ratio": 0.0}}
SITE = "model.layers.1"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def new_rows() -> list[dict[str, Any]]:
    """Nine documents, with a column of their own."""
    texts = [" ".join(SENTENCES[::-1] * 3)[: 60 * number] for number in range(1, 10)]
    return [
        {"id": f"new-{number}", "text": text, "party": "R", "year": 1900 + number} for number, text in enumerate(texts)
    ]


@pytest.fixture
def new_corpus(tmp_path: Path, new_rows: list[dict[str, Any]]) -> Path:
    return write_rows(tmp_path / "new.jsonl", new_rows)


@pytest.fixture
def config(configure: Any) -> ExtractConfig:
    """The run over the old corpus."""
    built: ExtractConfig = configure("grown", **ALONE)
    return built


def scores_of(store: ScoreStore) -> dict[str, dict[str, Any]]:
    """Everything that is stored of each document, by its key."""
    found = {}
    for segment in store.segments:
        table, tokens = segment.documents(), segment.tokens()
        for slot, key in enumerate(table.key):
            start, stop = np.searchsorted(tokens.document, [slot, slot + 1])
            scores = segment.site(SITE).by_token(int(start), int(stop))
            found[key] = {
                "text": table.text[slot],
                "metadata": {name: values[slot] for name, values in table.metadata.items() if values[slot] is not None},
                "value": float(table.objectives["next-token"][slot]),
                "tokens": tokens.token_id[start:stop].tolist(),
                "mask": tokens.mask[start:stop].tolist(),
                "latents": scores.indices.tolist(),
                "activation": scores.activation.tolist(),
                "projection": scores.projections["next-token"].tolist(),
            }
    return found


def test_a_store_that_grew_holds_what_one_of_both_corpora_at_once_holds(
    config: ExtractConfig, configure: Any, new_corpus: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    extract(config)
    path = Path(config.store.path)
    before = {name: data for name, data in files(path).items() if not name.startswith("index/")}
    report = append(path, str(new_corpus))
    assert files(path).items() >= before.items()
    both = tmp_path / "both.jsonl"
    both.write_text(tiny_corpus.read_text(encoding="utf-8") + new_corpus.read_text(encoding="utf-8"), encoding="utf-8")
    at_once = configure("whole", **ALONE, corpus={"path": str(both)})
    extract(at_once)
    grown, whole = open_scores(path), open_scores(at_once.store.path)
    assert report.num_segments == grown.generations[1].num_segments
    assert scores_of(grown) == scores_of(whole)
    assert grown.index is not None
    left, right = (rank_latents(store, k=None).to_pydict() for store in (grown, whole))
    assert left.keys() == right.keys()
    assert left["latent"] == right["latent"]
    for name, values in left.items():
        assert values == pytest.approx(right[name], rel=1e-5), name
    assert verify(path) == []


def test_the_same_command_resumes_and_another_corpus_adds_another_generation(
    config: ExtractConfig, new_corpus: Path, new_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    extract(config)
    path = Path(config.store.path)
    append(path, str(new_corpus))
    store = open_scores(path)
    digests = [segment.digest for segment in store.segments]
    victim = store.generations[1].first_segment + 2
    (path / "commits" / f"{victim:06d}.json").unlink()
    report = append(path, str(new_corpus))
    assert (report.num_segments, report.num_skipped) == (1, store.generations[1].num_segments - 1)
    assert [segment.digest for segment in open_scores(path).segments] == digests
    third = write_rows(tmp_path / "third.jsonl", [{**row, "id": f"third-{row['id']}"} for row in new_rows[:3]])
    answer = gradsae("append", path, "--corpus", third, "--max-documents", "2")
    assert answer.status == 0, answer.err
    store = open_scores(path)
    assert [one.run["config"]["corpus"]["path"] for one in store.generations[1:]] == [str(new_corpus), str(third)]
    assert store.num_documents == 12 + 9 + 2
    assert store.is_complete
    assert store.index is not None


@pytest.mark.parametrize("own_first", [True, False])
def test_an_incomplete_store_is_appended_to_and_completed_in_either_order(
    config: ExtractConfig, configure: Any, new_corpus: Path, own_first: bool
) -> None:
    whole = configure("whole", **ALONE)
    for run in (config, whole):
        extract(run)
    append(whole.store.path, str(new_corpus))
    path = Path(config.store.path)
    for number in (1, 3):
        (path / "commits" / f"{number:06d}.json").unlink()
    if own_first:
        extract(config)
        append(path, str(new_corpus))
    else:
        append(path, str(new_corpus))
        assert not open_scores(path).is_complete
        extract(config)
    grown, expected = open_scores(path), open_scores(whole.store.path)
    assert [segment.digest for segment in grown.segments] == [segment.digest for segment in expected.segments]
    assert grown.is_complete


def test_an_append_that_is_killed_is_resumed_to_the_same_bytes(
    forkserver: Any, config: ExtractConfig, configure: Any, new_corpus: Path
) -> None:
    whole = configure("whole", **ALONE)
    for run in (config, whole):
        extract(run)
    append(whole.store.path, str(new_corpus))
    child = forkserver.Process(target=append, args=(config.store.path, str(new_corpus)))
    child.start()
    commits = Path(config.store.path) / "commits"
    had = len(list(commits.glob("*.json")))
    while len(list(commits.glob("*.json"))) == had and child.exitcode is None:
        child.join(timeout=0.001)
    child.kill()
    child.join()
    extract(config)  # the run of the old corpus goes on between, and finds nothing to do
    append(config.store.path, str(new_corpus))
    grown, expected = open_scores(config.store.path), open_scores(whole.store.path)
    assert [segment.digest for segment in grown.segments] == [segment.digest for segment in expected.segments]
    assert verify(config.store.path) == []


def test_documents_that_the_store_has_are_refused_before_anything_is_written(
    config: ExtractConfig, new_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    extract(config)
    path = Path(config.store.path)
    before = files(path)
    mixed = write_rows(tmp_path / "mixed.jsonl", [*new_rows, {"id": "doc-4", "text": "Once more."}])
    answer = gradsae("append", path, "--corpus", mixed)
    assert answer.status == 1
    assert "1 of these keys already: 'doc-4'" in answer.err
    assert "gradsae drop" in answer.err
    assert files(path) == before
    with pytest.raises(CorpusError, match="doc-4"):
        append(path, documents=[{"id": "doc-4", "text": "Once more."}])
    assert files(path) == before


def test_a_document_with_a_dropped_key_is_appended_and_it_is_told(config: ExtractConfig) -> None:
    extract(config)
    drop_documents(config.store.path, ["doc-4"])
    told: list[str] = []
    append(config.store.path, documents=[{"id": "doc-4", "text": "Once more."}], on_message=told.append)
    assert any(line.startswith("1 documents have keys that were dropped from the store ('doc-4')") for line in told)
    assert open_scores(config.store.path).num_documents == 12


def test_a_model_or_sae_that_is_no_longer_that_of_the_run_is_refused(
    config: ExtractConfig, new_corpus: Path, write_sae: Any, tmp_path: Path
) -> None:
    extract(config)
    other = write_sae(name="other", seed=1)
    with pytest.raises(IdentityError, match=r"saes\.model.layers.1\.digest"):
        append(config.store.path, str(new_corpus), saes=[str(other)])
    assert len(open_scores(config.store.path).generations) == 1
    moved = tmp_path / "moved"
    Path(config.saes[0].path).rename(moved)
    assert append(config.store.path, str(new_corpus), saes=[str(moved)]).num_segments > 0


def test_settings_are_those_of_the_stores_run_but_for_what_belongs_to_its_corpus(
    configure: Any, new_corpus: Path
) -> None:
    config = configure("grown", corpus={"max_documents": 5, "id_column": "id"}, run={"tokens_per_batch": 100})
    extract(config)
    store = open_scores(config.store.path)
    built = append_config(store, {"path": str(new_corpus)}, run={"threads": 1})
    assert built.corpus.id_column == "id"
    assert built.corpus.max_documents is None
    assert (built.run.tokens_per_batch, built.run.force) == (100, False)
    assert built.store.append
    with pytest.raises(ConfigError, match="no corpus to append"):
        append_config(store, {})
    with pytest.raises(ConfigError, match="got 2 --sae for the 1 of the store's run"):
        append_config(store, {"path": str(new_corpus)}, saes=["a", "b"])


def test_exact_effects_are_measured_generation_by_generation(config: ExtractConfig, new_corpus: Path) -> None:
    extract(config)
    report = append(config.store.path, str(new_corpus), run={"exact_dense": 0.3})
    store = open_scores(config.store.path)
    exact = store.exact_dense()
    assert report.exact is not None
    assert exact is not None
    assert exact.missing == tuple(store.generations[0].segments)
    with pytest.raises(QueryError, match="run the same `gradsae extract` command, with --exact"):
        rank_latents(store, exact_dense=True)
    extract(replace(config, run=replace(config.run, exact_dense=0.3)))
    exact = open_scores(config.store.path).exact_dense()
    assert exact is not None
    assert exact.missing == ()
    assert rank_latents(open_scores(config.store.path), exact_dense=True).num_rows > 0


def test_every_setting_of_ray_can_be_given_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def refuse(*_arguments: Any, run: dict[str, Any], **_options: Any) -> None:
        given.append(run)
        raise ConfigError("seen")

    monkeypatch.setattr("gradsae_fast.append.append", refuse)
    words = ["--gpus-per-worker", 4, "--ray-address", "head:6379", "--stall-minutes", 5]
    answer = gradsae("append", "some.gradsae", "--corpus", "new.jsonl", "--engine", "ray", "--workers", 2, *words)
    assert answer.err == "error: seen\n"
    (run,) = given
    assert run.pop("engine") == "ray"
    assert run == {"workers": 2, "gpus_per_worker": 4.0, "ray_address": "head:6379", "stall_minutes": 5.0}


def test_a_store_without_a_recorded_run_or_gate_is_refused(
    config: ExtractConfig, new_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        append(tmp_path / "misspelt", str(new_corpus))
    extract(config)
    (Path(config.store.path) / "facts" / "gate.json").unlink()
    with pytest.raises(StoreError, match="has not passed its gate yet"):
        append(config.store.path, str(new_corpus))


def test_a_merge_of_two_runs_is_a_store_that_can_be_asked_described_and_appended_to(
    config: ExtractConfig, configure: Any, new_corpus: Path, new_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    second = configure("second", **ALONE, corpus={"path": str(new_corpus)})
    for run in (config, second):
        extract(run)
    answer = gradsae("merge", config.store.path, second.store.path, "--out", tmp_path / "both")
    assert answer.status == 0, answer.err
    assert "2 generations" in answer.out
    merged = open_scores(tmp_path / "both")
    assert scores_of(merged) == scores_of(open_scores(config.store.path)) | scores_of(open_scores(second.store.path))
    assert merged.index is not None
    victim = merged.generations[1].first_segment
    digest = merged.segments[victim].digest
    (tmp_path / "both" / "commits" / f"{victim:06d}.json").unlink()
    assert append(tmp_path / "both", str(new_corpus)).num_segments == 1
    assert open_scores(tmp_path / "both").segments[victim].digest == digest
    third = write_rows(tmp_path / "third.jsonl", [{**row, "id": f"third-{row['id']}"} for row in new_rows[:3]])
    append(tmp_path / "both", str(third))
    assert len(open_scores(tmp_path / "both").generations) == 3
    assert verify(tmp_path / "both") == []
    assert "generation 2: " in gradsae("info", tmp_path / "both").out


def test_merging_again_and_indexing_by_hand_change_nothing(
    config: ExtractConfig, configure: Any, new_corpus: Path, tmp_path: Path
) -> None:
    second = configure("second", **ALONE, corpus={"path": str(new_corpus)})
    for run in (config, second):
        extract(run)
    merge([config.store.path, second.store.path], tmp_path / "both")
    index = open_scores(tmp_path / "both").index
    assert merge([config.store.path, second.store.path], tmp_path / "both").num_segments == 0
    again = open_scores(tmp_path / "both").index
    assert index is not None
    assert again is not None
    assert again.digest == index.digest
    build_index(tmp_path / "both")
