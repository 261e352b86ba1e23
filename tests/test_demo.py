"""The embedded default does the main job offline and says what to type next."""

import dataclasses
import json
from pathlib import Path

import pytest

from gradsae_fast import demo, open_scores
from gradsae_fast.config import ExtractConfig


def test_model_sae_and_corpus_ship_in_ten_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in demo.ASSETS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 10e6
    assert sizes["corpus.jsonl"] < 1e6
    rows = [json.loads(line) for line in (demo.ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    parties = [row["party"] for row in rows]
    assert set(parties) == set(demo.GROUPS)
    assert parties.count("Republican") == parties.count("Democratic")


def test_the_demo_passes_its_gate_and_prints_latents_of_both_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shorter(out: Path) -> ExtractConfig:
        config = whole(out)
        return dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, max_documents=4))

    whole = demo.demo_config
    monkeypatch.setattr(demo, "demo_config", shorter)
    demo.run_demo(tmp_path)
    store = open_scores(tmp_path / "scores.gradsae")
    assert store.is_complete
    printed = capsys.readouterr().out
    for text in ("sets Republican", "sets Democratic", "latent ", "nats", "gradsae rank latents", "gradsae extract"):
        assert text in printed
    gate = store.facts("gate")
    assert gate is not None
    assert all(check["passed"] for check in gate["checks"])
