"""The straight line from a store to tables and a plot, on the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import typer
from typer.testing import CliRunner

from gradsae_fast.cli_synthetic import synthetic
from gradsae_fast.config import ModelConfig
from gradsae_fast.errors import ConfigError, IdentityError, StoreError
from gradsae_fast.store import open_scores
from gradsae_fast.synthetic import subject
from gradsae_fast.synthetic.experiment import Settings, run_synthetic, write_report
from tests.synthetic.conftest import TEXT, MakeStore

SETTINGS = Settings(tokens=3, num_steps=12, min_context=4)
KINDS = ["real", "reconstruction", "gaussian", "bag", "structured"]


def test_every_token_gives_a_path_to_every_kind_and_from_every_other(store_path: Path) -> None:
    report = run_synthetic(store_path, settings=SETTINGS)
    groups = [("real", kind) for kind in KINDS] + [(kind, "real") for kind in KINDS[1:]]
    assert [(curve.start, curve.target) for curve in report.curves] == groups * 3
    assert [(row["start"], row["target"], row["paths"]) for row in report.summary.to_pylist()] == [
        (start, target, 3) for start, target in groups
    ]
    assert report.facts["step"] == pytest.approx(max(curve.length for curve in report.curves) / 12)
    assert report.summary.column("cut").to_pylist() == [0] * 9
    assert all(curve.position >= 4 and len(curve.distance_S) == 13 for curve in report.curves)
    assert all(np.isfinite(curve.divergence_S).all() for curve in report.curves)
    sets = report.facts["latent_sets"]
    assert sets["bag"]["l0"] == pytest.approx(sets["stored"]["l0"], rel=0.2)
    norms = [curve.target_norm for curve in report.curves if curve.target == "real"]
    assert min(norms) < report.facts["real_states"]["mean_norm"] < 2 * max(norms)
    assert 0 < report.facts["real_states"]["mean_distance_from_mean"] < 2 * max(norms)


def test_equal_seeds_give_equal_curves_and_others_do_not(store_path: Path) -> None:
    first, second = (run_synthetic(store_path, settings=SETTINGS) for _ in range(2))
    for one, other in zip(first.curves, second.curves, strict=True):
        np.testing.assert_array_equal(one.distance_S, other.distance_S)
    third = run_synthetic(store_path, settings=Settings(tokens=3, num_steps=12, min_context=4, seed=1))
    places = [{(curve.document, curve.position) for curve in report.curves} for report in (first, third)]
    assert places[0] != places[1]


def test_the_verb_writes_curves_summary_and_plot(store_path: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(synthetic)
    arguments = [str(store_path), "--tokens", "2", "--steps", "5", "--step", "0.5", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--format", "json"], catch_exceptions=False)
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    kept = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [row["target"] for row in shown["rows"]] == [row["target"] for row in kept["rows"]]
    assert (kept["facts"]["step"], kept["facts"]["seed"], kept["facts"]["tokens"]) == (0.5, 0, 2)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "curves.parquet")
    assert table.num_rows == 2 * 9 * 6
    assert (tmp_path / "out" / "curves.svg").read_text(encoding="utf-8").startswith("<svg")


def test_numbers_that_are_not_finite_are_null_in_json(store_path: Path, tmp_path: Path) -> None:
    report = run_synthetic(store_path, settings=Settings(tokens=1, num_steps=4, min_context=4))
    write_report(report, tmp_path)
    assert "NaN" not in (tmp_path / "summary.json").read_text(encoding="utf-8")


def test_latents_that_fire_alone_have_no_cosines_and_the_summary_stays_json(
    make_store: MakeStore, write_sae: Callable[..., Path], tmp_path: Path
) -> None:
    store = make_store([TEXT, TEXT[::-1]], sae=write_sae("topk", k=1))
    report = run_synthetic(store, settings=Settings(tokens=1, num_steps=4, min_context=4))
    assert report.facts["latent_sets"]["bag"]["mean_pair_cosine"] is None
    write_report(report, tmp_path)
    assert "NaN" not in (tmp_path / "summary.json").read_text(encoding="utf-8")


def test_texts_that_begin_alike_give_no_path_from_a_state_to_itself(make_store: MakeStore) -> None:
    store = make_store([TEXT[:40] + end for end in ("", " free", " and work", " grow", " at home")])
    report = run_synthetic(store, settings=Settings(tokens=40, num_steps=3, min_context=2))
    assert min(curve.length / curve.start_norm for curve in report.curves) > 0.02
    assert all(np.isfinite(curve.distance_S).all() for curve in report.curves)


def test_it_is_told_how_many_targets_a_sweep_does_not_reach(store_path: Path) -> None:
    told: list[str] = []
    report = run_synthetic(store_path, settings=Settings(tokens=1, num_steps=2, step=0.01), on_message=told.append)
    assert told[-1] == "9 of 9 paths are longer than the sweep (0.02): raise --steps"
    assert report.summary.column("cut").to_pylist() == [1] * 9


def test_no_text_is_read_once_there_are_enough_tokens(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    text = subject._text

    def noted(segment: Any, slot: int, length: int) -> subject.Text | None:
        read.append(slot)
        return text(segment, slot, length)

    monkeypatch.setattr(subject, "_text", noted)
    assert len(list(subject.read_texts(open_scores(store_path), 2, 0))) == len(read) == 1
    assert len(list(subject.read_texts(open_scores(store_path), 4096, 0))) == 3


def test_the_model_is_loaded_in_the_revision_of_the_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = open_scores(store_path), []

    class Stop(Exception):
        pass

    def load(config: ModelConfig) -> None:
        asked.append((config.path, config.revision))
        raise Stop

    store.run["config"]["model"] = {"path": "a/model", "revision": "abc"}
    monkeypatch.setattr(subject, "load_model", load)
    for elsewhere in (None, "folder"):
        with pytest.raises(Stop):
            subject.load_subject(store, None, elsewhere, None, "cpu")
    assert asked == [("a/model", "abc"), ("folder", None)]


def test_a_store_of_differences_from_patch_texts_is_refused(make_store: MakeStore) -> None:
    documents = [{"text": TEXT, "patch": TEXT.replace("Taxes", "farms")}]
    with pytest.raises(StoreError, match="differences from patch texts"):
        run_synthetic(make_store(documents, patch_column="patch"), settings=SETTINGS)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(synthetic)
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot be a folder"):
            CliRunner().invoke(app, [str(tmp_path / "no store"), "--out", str(out)], catch_exceptions=False)


def test_another_sae_than_the_stores_is_refused(store_path: Path, write_sae: Callable[..., Path]) -> None:
    with pytest.raises(IdentityError, match="not those of"):
        run_synthetic(store_path, settings=SETTINGS, sae=str(write_sae(seed=8)))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(tokens=100_000), "were asked for"),
        (Settings(num_steps=0), "num_steps is 0"),
        (Settings(pool_tokens=1), "pool_tokens is 1; expected at least 2"),
        (Settings(step=-1.0), "expected a length above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(store_path: Path, settings: Settings, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        run_synthetic(store_path, settings=settings)
