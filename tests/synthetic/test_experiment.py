"""The straight line from a store to tables and a plot, on the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import typer
from typer.testing import CliRunner

from gradsae_fast.cli_synthetic import synthetic
from gradsae_fast.errors import ConfigError, IdentityError
from gradsae_fast.synthetic.experiment import Settings, run_synthetic, write_report

SETTINGS = Settings(tokens=3, num_steps=12, min_context=4)
KINDS = ["real", "reconstruction", "gaussian", "bag", "structured"]


def test_every_token_gives_a_path_to_every_kind_and_from_every_other(store_path: Path) -> None:
    report = run_synthetic(store_path, settings=SETTINGS)
    groups = [("real", kind) for kind in KINDS] + [(kind, "real") for kind in KINDS[1:]]
    assert [(curve.start, curve.target) for curve in report.curves] == groups * 3
    assert [(row["start"], row["target"], row["paths"]) for row in report.summary.to_pylist()] == [
        (start, target, 3) for start, target in groups
    ]
    lengths = [curve.length for curve in report.curves if (curve.start, curve.target) == ("real", "real")]
    assert report.facts["step"] == pytest.approx(np.median(lengths) / 12)
    assert all(curve.position >= 4 and len(curve.distance_S) == 13 for curve in report.curves)
    assert all(np.isfinite(curve.divergence_S).all() for curve in report.curves)
    sets = report.facts["latent_sets"]
    assert sets["bag"]["l0"] == pytest.approx(sets["stored"]["l0"], rel=0.2)


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


def test_another_sae_than_the_stores_is_refused(store_path: Path, write_sae: Callable[..., Path]) -> None:
    with pytest.raises(IdentityError, match="not those of"):
        run_synthetic(store_path, settings=SETTINGS, sae=str(write_sae(seed=8)))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(tokens=100_000), "were asked for"),
        (Settings(num_steps=0), "num_steps is 0"),
        (Settings(step=-1.0), "expected a length above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(store_path: Path, settings: Settings, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        run_synthetic(store_path, settings=settings)
