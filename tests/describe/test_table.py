"""A description has a row for each latent, needs no corpus, and refuses another model or SAE."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gradsae_fast import open_scores, rank_latents
from gradsae_fast.cli_describe import describe as verb
from gradsae_fast.config import ExtractConfig
from gradsae_fast.describe import describe, table
from gradsae_fast.describe.logits import direct_effects, token_text
from gradsae_fast.describe.origin import Origin, load_origin
from gradsae_fast.errors import ConfigError, IdentityError, QueryError, StoreError
from gradsae_fast.extract import extract
from gradsae_fast.model.sites import Wiring
from gradsae_fast.ranking import query_of
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.places.durable import document_bytes
from gradsae_fast.store.records.facts import facts_path


@pytest.fixture(scope="module")
def rows(scored: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = describe(scored, k=6, tokens=4).to_pylist()
    return found


def test_the_most_influential_latents_are_described_in_their_order(scored: Path, rows: list[dict[str, Any]]) -> None:
    ranked = rank_latents(open_scores(scored), k=6).to_pylist()
    assert [(row["latent"], row["influence"]) for row in rows] == [(r["latent"], r["influence"]) for r in ranked]


def test_tokens_and_effects_are_those_of_the_decoder_row(scored: Path, rows: list[dict[str, Any]]) -> None:
    origin = load_origin(open_scores(scored), "model.layers.1")
    for row in rows:
        effects = direct_effects(origin.lm, origin.sited.sae.w_dec_CD[[row["latent"]]], 4)
        assert row["promoted"] == [token_text(origin.lm, int(token)) for token in effects.promoted_KM[0]]
        assert row["suppressed"] == [token_text(origin.lm, int(token)) for token in effects.suppressed_KM[0]]
        np.testing.assert_allclose(row["suppressed_effect"], effects.suppressed_effect_KM[0], rtol=1e-5)
        assert row["promoted_effect"] == sorted(row["promoted_effect"], reverse=True)
        assert row["promoted_effect"][0] > 0 > row["suppressed_effect"][0]


def test_scores_do_not_depend_on_how_many_tokens_are_listed_or_on_the_company(
    scored: Path, rows: list[dict[str, Any]]
) -> None:
    chosen = [rows[4]["latent"], rows[1]["latent"]]
    found = describe(open_scores(scored), chosen, tokens=25).to_pylist()
    assert [row["latent"] for row in found] == chosen
    for row, other in zip(found, (rows[4], rows[1]), strict=True):
        assert len(row["promoted"]) == 25
        assert {key: row[key] for key in ("influence", "input_score", "num_examples")} == {
            key: other[key] for key in ("influence", "input_score", "num_examples")
        }
        assert row["output_score"] == pytest.approx(other["output_score"], rel=1e-4)


def test_a_latent_that_never_fires_has_tokens_but_no_input_score(
    configure: Callable[..., ExtractConfig], tmp_path: Path, tiny_sae_folder: Path
) -> None:
    folder = Path(shutil.copytree(tiny_sae_folder, tmp_path / "silent"))
    weights = next(folder.glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["threshold"][7] = 1e9
    save_file(tensors, weights)
    config = configure(sae={"path": str(folder)})
    extract(config)
    (row,) = describe(config.store.path, [7], output_score=False).to_pylist()
    assert (row["influence"], row["input_score"], row["num_examples"], row["output_score"]) == (0.0, None, 0, None)
    assert len(row["promoted"]) == 10


def test_the_metadata_says_what_was_asked(scored: Path) -> None:
    query = query_of(describe(scored, [0], prompt="The union,", strength=3.0, error_term=True))
    assert query["site"] == "model.layers.1"
    assert (query["prompt"], query["strength"], query["error_term"]) == ("The union,", 3.0, True)
    assert query["influence_unit"] == "nats"
    assert "prompt" not in query_of(describe(scored, [0], output_score=False))


def test_of_a_transcoder_that_writes_several_sites_the_sum_is_described(
    scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_wider(store: ScoreStore, site: str, **options: Any) -> Origin:
        origin = load_origin(store, site, **options)
        writes = (origin.sited.site, origin.lm.site("model.layers.2.mlp"))
        wiring = Wiring(reads=origin.sited.site, writes=writes)
        row_CD = origin.sited.sae.w_dec_CD
        sae = dataclasses.replace(origin.sited.sae, w_dec_CD=torch.cat([row_CD.flip(0), row_CD - row_CD.flip(0)], 1))
        return dataclasses.replace(origin, sited=dataclasses.replace(origin.sited, wiring=wiring, sae=sae))

    expected = describe(scored, [3, 5], output_score=False)
    monkeypatch.setattr(table, "load_origin", load_wider)
    assert describe(scored, [3, 5], output_score=False)["promoted"] == expected["promoted"]
    with pytest.raises(ConfigError, match="--no-output-score"):
        describe(scored, [3, 5])


@pytest.mark.parametrize(
    "options",
    [
        *({"latents": []}, {"latents": [9999]}, {"tokens": 0}, {"examples": 0}, {"k": 0}, {"site": "nowhere"}),
        *({"strength": value} for value in (0.0, -1.0, float("nan"), float("inf"))),
    ],
)
def test_questions_without_an_answer_are_refused(scored: Path, options: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        describe(scored, **options)


@pytest.mark.parametrize("option", [{"prompt": "The"}, {"strength": 3.0}, {"error_term": False}])
def test_options_without_effect_are_refused(scored: Path, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(QueryError, match=f"{name} = .* has no effect without output scores"):
        describe(scored, [3], output_score=False, **option)
    with pytest.raises(QueryError, match="k = 20 has no effect beside named latents"):
        describe(scored, [3], 20)


def moved(scored: Path, tmp_path: Path, **paths: Path) -> Path:
    """A copy of the store whose record names other files."""
    store = Path(shutil.copytree(scored, tmp_path / "moved"))
    record = json.loads((store / "run.json").read_text())
    config = record["run"]["config"]
    if "model" in paths:
        config["model"]["path"] = str(paths["model"])
    if "sae" in paths:
        config["saes"][0]["path"] = record["run"]["saes"]["model.layers.1"]["source"] = str(paths["sae"])
    config["corpus"]["path"] = str(tmp_path / "gone.jsonl")
    record.pop("checksum")
    (store / "run.json").write_bytes(document_bytes(record))
    return store


def test_the_corpus_is_not_needed_but_model_and_sae_must_be_the_stores(
    scored: Path, tmp_path: Path, tiny_model_folder: Path, tiny_sae_folder: Path
) -> None:
    store = moved(scored, tmp_path)
    assert describe(store, [3]).equals(describe(scored, [3]))
    shutil.rmtree(store)
    others = {"model": tiny_model_folder, "sae": tiny_sae_folder}
    for what, folder in others.items():
        other = Path(shutil.copytree(folder, tmp_path / what))
        weights = next(other.glob("*.safetensors"))
        changed = {key: tensor + 0.01 for key, tensor in load_file(weights).items()}
        save_file(changed, weights, metadata={"format": "pt"})
        store = moved(scored, tmp_path, **{what: other})
        with pytest.raises(IdentityError, match="is not the one that made"):
            describe(store, [3])
        shutil.rmtree(store)


def test_a_store_that_does_not_record_its_gate_is_refused(scored: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(scored, tmp_path / "bare"))
    facts_path(store, "gate").unlink()
    with pytest.raises(StoreError, match="gate"):
        describe(store, [3])


def test_the_verb_prints_tokens_in_cells_and_lists_in_json(scored: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    words = [str(scored), "--latent", "3", "--latent", "11", "--tokens", "2"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.split()[:7] == [
        *("latent", "influence", "input_score", "num_examples", "output_score", "promoted", "suppressed")
    ]
    answer = json.loads(CliRunner().invoke(app, [*words, "--format", "json"]).stdout)
    assert [row["latent"] for row in answer["rows"]] == [3, 11]
    assert [len(row["promoted"]) for row in answer["rows"]] == [2, 2]
    assert " ".join(map(repr, answer["rows"][0]["promoted"])) in shown.stdout
    lines = list(csv.DictReader(CliRunner().invoke(app, [*words, "--format", "csv"]).stdout.splitlines()))
    assert lines[1]["promoted"] == " ".join(map(repr, answer["rows"][1]["promoted"]))
    bare = CliRunner().invoke(app, [str(scored), "-k", "2", "--no-output-score", "--format", "json"])
    assert [row["output_score"] for row in json.loads(bare.stdout)["rows"]] == [None, None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "x.csv"], "needs a file format"),
        (["--format", "parquet"], "parquet is no text"),
        (["--format", "yaml"], "unknown format"),
        (["--format", "csv", "-o", "nowhere/x.csv"], "folder that does not exist"),
    ],
)
def test_the_verb_refuses_an_output_before_it_loads_anything(
    words: list[str], message: str, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.describe.describe", None)
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [str(scored), *words])
    assert isinstance(result.exception, QueryError)
    assert message in str(result.exception)
