"""The verbs `gradsae jacobian extract|rank` as typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gradsae_fast.cli_jacobian import jacobian
from gradsae_fast.errors import ConfigError, QueryError
from gradsae_fast.jacobian.store import open_jacobian


@pytest.fixture
def arguments(tiny_model_folder: Path, tiny_corpus: Path, write_sae: Callable[..., Path], tmp_path: Path) -> list[str]:
    given = {
        "model": tiny_model_folder,
        "sae-in": write_sae(name="below"),
        "sae-out": write_sae(name="above", seed=9),
        "site-in": "model.layers.1.mlp.input",
        "site-out": "model.layers.1.mlp",
        "corpus": tiny_corpus,
        "out": tmp_path / "store",
        "context-length": 64,
        "overlap": 16,
        "threads": 1,
    }
    return ["extract", "--force", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(jacobian, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_extract_then_rank_edges_and_their_tokens(arguments: list[str], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert "next: gradsae jacobian rank" in run(*arguments)
    assert " 0 segments written" in run(*arguments)
    ranked = json.loads(run("rank", store, "-k", "3", "--format", "json"))
    assert ranked["query"]["site_in"] == "model.layers.1.mlp.input"
    assert [row["rank"] for row in ranked["rows"]] == [1, 2, 3]
    best = ranked["rows"][0]
    edge = ["--latent-out", str(best["latent_out"]), "--latent-in", str(best["latent_in"])]
    tokens = json.loads(run("rank", store, *edge, "--tokens", "-k", "5000", "--format", "json"))["rows"]
    assert len(tokens) == best["count"]
    assert max(abs(row["value"]) for row in tokens) == pytest.approx(best["maximum"], rel=1e-6)
    assert "latent_out" in run("rank", store)


def test_a_file_says_what_options_do_not(arguments: list[str], tmp_path: Path, tiny_corpus: Path) -> None:
    given = dict(zip((name.removeprefix("--") for name in arguments[2::2]), arguments[3::2], strict=True))
    lines = [
        f"model = {{ path = '{given['model']}' }}",
        f"corpus = {{ path = '{tiny_corpus}', max_documents = 3, context_length = 64, overlap = 16 }}",
        f"store = {{ path = '{tmp_path / 'from file'}' }}",
        "run = { threads = 1, force = true }",
        *(f"[[sae]]\npath = '{given[f'sae-{side}']}'\nsite = '{given[f'site-{side}']}'" for side in ("in", "out")),
    ]
    (tmp_path / "run.toml").write_text("\n".join(lines), encoding="utf-8")
    run("extract", "--config", str(tmp_path / "run.toml"), "--max-documents", "5")
    store = open_jacobian(tmp_path / "from file")
    assert sum(segment.counts["documents"] for segment in store.segments) == 5
    assert store.run.identity["jacobian"]["site_out"] == given["site-out"]


def test_options_that_make_no_sense_are_refused(arguments: list[str], tmp_path: Path) -> None:
    runner, app = CliRunner(), typer.Typer()
    app.add_typer(jacobian, name="jacobian")
    store = str(tmp_path / "store")
    for given, error, why in (
        ([*arguments, "--point", "elsewhere"], ConfigError, "expected one of reconstruction, hidden"),
        (["extract", "--model", "m", "--sae-in", "a", "--site-in", "b"], ConfigError, "give all four"),
        (["rank", store, "--tokens"], QueryError, "give both"),
        (["rank", store, "--context", "3"], QueryError, "no effect without --tokens"),
    ):
        with pytest.raises(error, match=why):
            runner.invoke(app, ["jacobian", *given], catch_exceptions=False)
