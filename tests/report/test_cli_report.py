"""`gradsae report`: what is typed, what is answered."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gradsae_fast.cli_report import report
from gradsae_fast.errors import ConfigError
from gradsae_fast.store import ScoreStore

APP = typer.Typer()
APP.command()(report)


def test_the_verb_writes_an_audit_and_says_where_to_look(store: ScoreStore, tmp_path: Path) -> None:
    words = ["--top", "3", "--documents", "2", "--contexts", "4", "--context", "5", "--groups", "odd"]
    words += ["--contrast-a", "year<1806", "--contrast-b", "year>=1806"]
    answer = CliRunner().invoke(APP, [str(store.path), "-o", str(tmp_path / "audit"), *words], catch_exceptions=False)
    assert answer.exit_code == 0
    files = [path for path in (tmp_path / "audit").rglob("*") if path.is_file()]
    latents = list((tmp_path / "audit/latents").iterdir())
    assert 3 < len(latents) <= 3 + 2 * 10  # the largest, and what sets the groups of two contrasts apart
    assert f"{len(latents)} latents, 2 documents: {len(files)} files" in answer.output
    assert f"open: {tmp_path / 'audit/index.html'}" in answer.output.replace("\n", "")
    overview = (tmp_path / "audit/index.html").read_text(encoding="utf-8")
    assert "odd = false against odd = true" in overview
    assert "year&lt;1806 against year&gt;=1806" in overview


def test_latents_can_be_named(store: ScoreStore, tmp_path: Path) -> None:
    words = [str(store.path), "-o", str(tmp_path / "audit"), "--latent", "30", "--latent", "4", "--latent", "30"]
    assert CliRunner().invoke(APP, words, catch_exceptions=False).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "audit/latents").iterdir()) == ["000004.html", "000030.html"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--contrast-a", "year<1806"], "--contrast-a and --contrast-b go together"),
        (["--top", "3", "--latent", "3"], "--top and --latent exclude each other"),
    ],
)
def test_options_that_contradict_are_refused(store: ScoreStore, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        CliRunner().invoke(APP, [str(store.path), "-o", str(tmp_path / "audit"), *words], catch_exceptions=False)
    assert not (tmp_path / "audit").exists()
