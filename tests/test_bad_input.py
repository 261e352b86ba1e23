"""Bad input, end to end: a clear error (got, expected, what to do), nothing lost, no traceback."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradsae_fast import config_from_tables, open_scores, rank_latents, verify
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import BusyError, FormatError, IdentityError, ScoreError, StoreError
from gradsae_fast.extract import Progress, extract
from gradsae_fast.model.capture import _Run
from gradsae_fast.records import Array, DocumentStatus, TokenMask
from gradsae_fast.store.places.durable import document_bytes
from tests.terminal import gradsae

Configure = Callable[..., ExtractConfig]
POISONED = "doc-5"
EXACT = {"precision_bits": 23}


def digests(path: str | Path) -> list[str]:
    return [segment.digest for segment in open_scores(path).segments]


def typed(config: ExtractConfig) -> list[object]:
    """The same run as a command."""
    words = ["extract", "--model", config.model.path, "--sae", config.saes[0].path, "--corpus", config.corpus.path]
    return [*words, "--context-length", 64, "--overlap", 16, "--tokens-per-batch", 256, "--out", config.store.path]


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path) -> dict[str, Any]:
    """The tables of `configure()`, without a store."""
    return {
        "model": {"path": str(tiny_model_folder)},
        "sae": {"path": str(tiny_sae_folder)},
        "corpus": {"path": str(tiny_corpus), "context_length": 64, "overlap": 16},
        "run": {"tokens_per_batch": 256, "force": True},
    }


@pytest.fixture(scope="module")
def whole(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the undamaged run."""
    path = tmp_path_factory.mktemp("whole") / "scores"
    extract(config_from_tables({**base, "store": {"path": str(path)}}))
    return path


@pytest.fixture
def copied(configure: Configure, whole: Path) -> ExtractConfig:
    """A run whose store is there already, for a test to damage."""
    config = configure()
    shutil.copytree(whole, config.store.path)
    return config


# Files that are missing, damaged, or of something else.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_model(config: ExtractConfig) -> str:
    shutil.rmtree(config.model.path)
    return "there is no local path"


def truncated_model(config: ExtractConfig) -> str:
    truncate(Path(config.model.path) / "model.safetensors")
    return "cannot load a causal language model"


def nan_in_model(config: ExtractConfig) -> str:
    poison_file(Path(config.model.path) / "model.safetensors", "model.norm.weight", float("nan"))
    return "weight model.norm.weight contains NaN or Inf"


def unknown_model_architecture(config: ExtractConfig) -> str:
    path = Path(config.model.path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "quantum", "architectures": ["Quantum"]}))
    return "cannot load a causal language model"


def without_sae(config: ExtractConfig) -> str:
    shutil.rmtree(config.saes[0].path)
    return "there is no local path"


def truncated_sae(config: ExtractConfig) -> str:
    truncate(Path(config.saes[0].path) / "sae_weights.safetensors")
    return "is not a whole safetensors file"


def infinity_in_sae(config: ExtractConfig) -> str:
    poison_file(Path(config.saes[0].path) / "sae_weights.safetensors", "W_dec", float("inf"))
    return "holds 1 NaN or Inf"


def unknown_sae_architecture(config: ExtractConfig) -> str:
    path = Path(config.saes[0].path) / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "transcoder-x"}))
    return "transcoder-x"


def without_corpus(config: ExtractConfig) -> str:
    Path(config.corpus.path).unlink()
    return "no such file or folder"


def truncated_corpus(config: ExtractConfig) -> str:
    truncate(Path(config.corpus.path))
    return "malformed JSON"


def empty_corpus(config: ExtractConfig) -> str:
    Path(config.corpus.path).write_bytes(b"")
    return "without rows, expected at least one"


def empty_documents_only(config: ExtractConfig) -> str:
    write_rows(Path(config.corpus.path), {"text": ""}, {"text": ""})
    return "without a single token"


def invalid_utf8(config: ExtractConfig) -> str:
    Path(config.corpus.path).write_bytes(b'{"text": "Ann\xe9e"}\n')
    return "got the byte 0xe9"


def duplicate_ids(config: ExtractConfig) -> str:
    write_rows(Path(config.corpus.path), {"id": "a", "text": "one"}, {"id": "a", "text": "two"})
    return "got the key 'a' twice"


def row_without_text(config: ExtractConfig) -> str:
    write_rows(Path(config.corpus.path), {"text": "one"}, {"body": "two"})
    return "line 2: got a row without the column 'text'"


def poison_file(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[3] = value
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGES = [
    *(without_model, truncated_model, nan_in_model, unknown_model_architecture, without_sae, truncated_sae),
    *(infinity_in_sae, unknown_sae_architecture, without_corpus, truncated_corpus, empty_corpus, empty_documents_only),
    *(invalid_utf8, duplicate_ids, row_without_text),
]


@pytest.fixture
def own_files(configure: Configure, tmp_path: Path) -> ExtractConfig:
    """A run whose model and corpus a test may damage."""
    config = configure()
    model = shutil.copytree(config.model.path, tmp_path / "model")
    corpus = shutil.copy(config.corpus.path, tmp_path / "corpus.jsonl")
    return replace(
        config,
        model=replace(config.model, path=str(model)),
        corpus=replace(config.corpus, path=str(corpus)),
    )


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_cannot_be_read_is_one_message(damage: Callable[[ExtractConfig], str], own_files: ExtractConfig) -> None:
    message = damage(own_files)
    answer = gradsae(*typed(own_files))
    assert answer.status == 1
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert not Path(own_files.store.path).exists()


def test_an_sae_of_another_width_is_refused_with_both_widths(configure: Configure, write_sae: Any) -> None:
    config = configure(sae={"path": str(write_sae(name="wide", width=32))})
    answer = gradsae(*typed(config))
    assert answer.status == 1
    assert "reads width 32" in answer.err
    assert "has width 24" in answer.err


# Documents at the edge.


def test_odd_documents_are_scored_or_said_to_be_empty(configure: Configure, tmp_path: Path) -> None:
    rows = [
        {"id": "empty", "text": ""},
        {"id": "one token", "text": "a"},
        {"id": "nul", "text": "The state\u0000of the union"},
        {"id": "big", "text": "The people.", "note": "häuser " * 1_500_000},
    ]
    config = configure(corpus={"path": write_rows(tmp_path / "odd.jsonl", *rows)})
    extract(config)
    found: dict[str, tuple[int, str, str | None]] = {}
    for segment in open_scores(config.store.path).segments:
        documents = segment.documents()
        found |= {
            key: (int(status), text, note)
            for key, status, text, note in zip(
                documents.key,
                documents.status,
                documents.text,
                documents.metadata.get("note", [None] * len(documents.key)),
                strict=True,
            )
        }
    assert {key: status for key, (status, _, _) in found.items()} == {
        "empty": DocumentStatus.EMPTY,
        "one token": DocumentStatus.SCORED,
        "nul": DocumentStatus.SCORED,
        "big": DocumentStatus.SCORED,
    }
    assert found["nul"][1] == rows[2]["text"]
    assert found["big"][2] == rows[3]["note"]


def test_empty_documents_before_the_first_text_are_passed_over(configure: Configure, tmp_path: Path) -> None:
    rows = [{"text": ""}] * 40 + [{"text": "The state of the union is strong."}]
    config = configure(corpus={"path": write_rows(tmp_path / "late.jsonl", *rows)})
    extract(config)
    assert open_scores(config.store.path).num_documents == 41


# NaN and Inf that the model makes of one document.


def poison(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Put a NaN into the hidden state, or Inf into the gradient, of the seventh token of one document's windows."""
    forward, backward = _Run.forward, _Run._backward

    def rows_of(run: _Run) -> Iterator[tuple[int, int]]:
        start = 0
        for index, window in enumerate(run.batch.windows):
            if window.document.document.key == POISONED and len(window.token_ids) > 6:
                yield index, start + 6
            start += len(window.token_ids)

    def poisoned_forward(run: _Run) -> Any:
        def change(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            for index, _ in rows_of(run):
                output[index, 6, 0] = float("nan")
            return output

        handle = run.lm.layers[1].register_forward_hook(change, prepend=True)
        try:
            return forward(run)
        finally:
            handle.remove()

    def poisoned_backward(run: _Run, *args: Any) -> Any:
        grads, values = backward(run, *args)
        for grad_RD in (grad_RD for grads_of_site in grads.values() for grad_RD in grads_of_site.values()):
            for _, row in rows_of(run):
                grad_RD[row, 0] = float("inf")
        return grads, values

    if where == "hidden state":
        monkeypatch.setattr(_Run, "forward", poisoned_forward)
    else:
        monkeypatch.setattr(_Run, "_backward", poisoned_backward)


def influences_by_document(path: str) -> dict[str, Array]:
    """Dense influences [tokens, latents] of every document."""
    found = {}
    for segment in open_scores(path).segments:
        tokens = segment.tokens()
        scores = segment.site("model.layers.1").by_token()
        dense_NC = np.zeros((segment.num_tokens, scores.num_latents), np.float32)
        row_Z = np.repeat(np.arange(segment.num_tokens), np.diff(scores.indptr))
        dense_NC[row_Z, scores.indices] = scores.activation * scores.projections["next-token"]
        for slot, key in enumerate(segment.document_keys()):
            found[key] = dense_NC[tokens.document == slot]
    return found


@pytest.fixture(scope="module")
def clean_influences(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Array]]:
    """Influences of the undamaged run, by preset and document."""
    found = {}
    for preset in ("gradsae", "attribution-patching"):
        path = str(tmp_path_factory.mktemp("clean") / preset)
        extract(config_from_tables({**base, "store": {"path": path, **EXACT}, "score": {"preset": preset}}))
        found[preset] = influences_by_document(path)
    return found


@pytest.mark.parametrize(
    ("policy", "where", "preset"),
    [
        ("quarantine", "hidden state", "gradsae"),
        ("keep", "gradient", "gradsae"),
        ("keep", "hidden state", "attribution-patching"),
        ("quarantine", "gradient", "attribution-patching"),
    ],
)
def test_nan_in_one_document_leaves_the_scores_of_all_others(
    policy: str,
    where: str,
    preset: str,
    configure: Configure,
    clean_influences: dict[str, dict[str, Array]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure(store=EXACT, score={"preset": preset, "nonfinite": policy})
    poison(monkeypatch, where)
    extract(config)
    found = influences_by_document(config.store.path)
    for key, influence_NC in clean_influences[preset].items():
        if key != POISONED:
            np.testing.assert_allclose(found[key], influence_NC, rtol=1e-4, atol=1e-6)
    store = open_scores(config.store.path)
    assert np.isfinite(rank_latents(store).column("score").to_numpy()).all()
    for segment in store.segments:
        documents, tokens = segment.documents(), segment.tokens()
        bad = (tokens.mask & TokenMask.NONFINITE) != 0
        for slot, key in enumerate(documents.key):
            quarantined = documents.status[slot] == DocumentStatus.QUARANTINED
            assert quarantined == (key == POISONED and policy == "quarantine")
            assert bad[tokens.document == slot].any() == (key == POISONED and policy == "keep")
            if quarantined:
                assert documents.num_tokens[slot] == 0
                assert not (tokens.document == slot).any()


@pytest.mark.parametrize("where", ["hidden state", "gradient"])
def test_nan_stops_the_run_with_document_and_token_unless_told_otherwise(
    where: str, configure: Configure, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    poison(monkeypatch, where)
    with pytest.raises(ScoreError, match=rf"NaN or Inf in the {where}.*'{POISONED}', token 6 .*--nonfinite quarantine"):
        extract(config)
    committed = len(digests(config.store.path))
    assert 0 < committed < 8
    assert verify(config.store.path) == []
    monkeypatch.undo()
    extract(config)
    assert digests(config.store.path) == digests(whole)


def test_a_product_that_overflows_is_an_error_that_names_the_sae(configure: Configure) -> None:
    config = configure()
    path = Path(config.saes[0].path) / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["W_enc"] *= 1e38
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    answer = gradsae(*typed(config), "--force")
    assert answer.status == 1
    assert "cannot encode these hidden states" in answer.err


# Stores that are not this run's, full, read-only, or in use.


def test_a_store_of_another_run_is_refused_with_both_values(copied: ExtractConfig) -> None:
    with pytest.raises(IdentityError, match=r"corpus\.context_length +64 +32"):
        extract(replace(copied, corpus=replace(copied.corpus, context_length=32)))


def test_a_store_of_a_newer_format_is_refused_with_both_versions(copied: ExtractConfig) -> None:
    config = copied
    run = Path(config.store.path) / "run.json"
    run.write_bytes(document_bytes(json.loads(run.read_bytes()) | {"format_version": 7}))
    with pytest.raises(FormatError, match="has format version 7; this release reads version 1"):
        extract(config)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_stops_the_run_and_the_same_call_completes_it(
    configure: Configure, whole: Path, small_disk: Path
) -> None:
    config = configure(store={"path": str(small_disk / "scores")})
    with pytest.raises(StoreError, match=r"disk full: .*free space and run the same command again"):
        extract(config)
    done = digests(config.store.path)
    assert 0 < len(done) < 8
    assert verify(config.store.path) == []
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert extract(config).num_skipped == len(done)
    assert digests(config.store.path) == digests(whole)


def test_a_read_only_store_is_said_to_be_read_only(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    config = configure()
    monkeypatch.setattr(os, "mkdir", refuse)
    answer = gradsae(*typed(config), "--force")
    assert answer.status == 1
    assert "is read-only for this user" in answer.err
    assert "choose another one" in answer.err


def test_a_second_extraction_into_one_store_is_refused(copied: ExtractConfig) -> None:
    with (Path(copied.store.path) / "writer.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="is being written by process"):
            extract(copied)
        assert open_scores(copied.store.path).is_complete


class Interrupt:
    """Ctrl-C after three segments; those that are being stored just then are stored wholly."""

    def __call__(self, progress: Progress) -> None:
        if progress.num_segments >= 3:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_what_is_committed_and_the_same_call_completes_it(
    configure: Configure, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    monkeypatch.setattr("gradsae_fast.progress.ProgressBar.update", lambda _bar, progress: Interrupt()(progress))
    answer = gradsae(*typed(config), "--force")
    assert answer.status == 130
    assert answer.err.endswith("interrupted; what was committed stays. Run the same command again to go on.\n")
    kept = len(digests(config.store.path))
    assert 3 <= kept < len(digests(whole))
    assert digests(config.store.path) == digests(whole)[:kept]
    assert verify(config.store.path) == []
    assert extract(config).num_skipped == kept
    assert digests(config.store.path) == digests(whole)


def test_a_corpus_that_changed_under_a_store_is_refused(own_files: ExtractConfig) -> None:
    extract(own_files)
    path = Path(own_files.corpus.path)
    path.write_text(path.read_text().replace("strong", "mighty"), encoding="utf-8")
    with pytest.raises(IdentityError, match=r"corpus\.plan"):
        extract(own_files)
