import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from scipy import sparse
from typer.testing import CliRunner, Result

from gradsae_fast.cli import Verbs
from gradsae_fast.cli_export import export
from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.export import FORMATS, export_scores
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores
from tests.export.conftest import ASKED, OBJECTIVE, SITE

NAMES = {
    "parquet": "scores.parquet",
    "csr": "scores.npz",
    "anndata": "scores.h5ad",
    "neuronpedia": "latents.jsonl",
    "delphi": "latents",
}


app = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)
app.command()(export)
app.command("other")(lambda: None)  # of an app with one verb typer makes no verbs


def run(store: ScoreStore, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", str(store.path), "--site", SITE, "--objective", OBJECTIVE, *arguments])


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_is_written_and_reported(store: ScoreStore, tmp_path: Path, to: str) -> None:
    path = tmp_path / NAMES[to]
    result = run(store, "--to", to, "-o", str(path), "--latent", "3", "--latent", "4", "--where", "year>=1920")
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    assert path.exists()
    again = run(store, "--to", to, "-o", str(path))
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    assert run(store, "--to", to, "-o", str(path), "--overwrite").exit_code == 0


def test_options_reach_the_format(store: ScoreStore, tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    result = run(store, "--to", "csr", "-o", str(path), "--rows", "tokens", "--by", "activation", "--include-special")
    assert result.exit_code == 0, result.output
    assert sparse.load_npz(path).shape == (128, 12)
    assert sparse.load_npz(path).data.min() > 0
    parquet = tmp_path / "scores.parquet"
    assert run(store, "--to", "parquet", "-o", str(parquet), "--document", "doc-01", "--order", "latent").exit_code == 0
    assert set(pq.read_table(parquet).column("document").to_pylist()) == {"doc-01"}
    said = json.loads(pq.read_schema(parquet).metadata[b"provenance"])
    assert (said["order"], said["document"]) == ("latent", ["doc-01"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "parquett"], "unknown format 'parquett'; did you mean 'parquet'"),
        (["--to", "parquet", "--rows", "tokens"], "rows (--rows) has no effect on the format 'parquet'"),
        (["--to", "parquet", "-k", "3"], "k (-k) has no effect on the format 'parquet'"),
        (["--to", "csr", "--splits", "3"], "splits (--splits) has no effect on the format 'csr'; leave it out"),
        (["--to", "parquet", "--latent", "99"], "got latent 99; expected 0 to 11"),
        (["--to", "parquet", "--where", "party=Martian"], "no chosen document meets"),
        (["--to", "parquet", "--document", "doc-99"], "no committed document has the key 'doc-99'"),
    ],
)
def test_bad_questions_get_one_message(store: ScoreStore, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(store, *arguments, "-o", str(tmp_path / "scores.parquet"))
    assert result.exit_code == 1
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_a_store_without_a_segment_is_refused(store: ScoreStore, tmp_path: Path) -> None:
    ScoreWriter.create_or_resume(tmp_path / "empty", run={}, identity={}, num_segments=2).close()
    for to, name in NAMES.items():
        with pytest.raises(QueryError, match="has no committed segment"):
            export_scores(open_scores(tmp_path / "empty"), tmp_path / name, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert export_scores(store, tmp_path / "scores.parquet", to="parquet", **ASKED).count > 0


def test_a_killed_export_leaves_no_file_under_the_name(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for a signal: nothing in the house catches it."""

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("gradsae_fast.export.target._settle", die)
    for to, name in NAMES.items():
        with pytest.raises(Killed):
            export_scores(store, tmp_path / name, to=to, **ASKED)
    assert [path.name for path in tmp_path.rglob("*")] == ["latents"]
    assert not list((tmp_path / "latents").iterdir())


@pytest.mark.parametrize("to", ["parquet", "delphi"])
def test_an_export_that_is_killed_by_the_system_keeps_what_was_there(
    store: ScoreStore, tmp_path: Path, to: str
) -> None:
    first = export_scores(store, tmp_path / NAMES[to], to=to, latent=3, **ASKED).path
    before = contents(first)
    code = (
        "import os, signal; from gradsae_fast import open_scores;"
        "from gradsae_fast.export import export_scores, target;"
        "target._settle = lambda _: os.kill(os.getpid(), signal.SIGKILL);"
        f"export_scores(open_scores({str(store.path)!r}), {str(tmp_path / NAMES[to])!r}, to={to!r}, overwrite=True,"
        f" **{dict(ASKED)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert contents(first) == before
    left = [path.name for path in tmp_path.iterdir() if path.name != NAMES[to]]
    assert [name.startswith(".tmp-") for name in left] == [True]
    export_scores(store, tmp_path / NAMES[to], to=to, overwrite=True, **ASKED)
    assert contents(first) != before


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_named_with_what_to_do(
    store: ScoreStore, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gradsae_fast.export.target._settle", full)
    result = run(store, "--to", to, "-o", str(tmp_path / NAMES[to]))
    assert result.exit_code == 1
    assert f"disk full: {tmp_path}" in result.output
    assert "free space and run the same command again" in result.output
    assert [path.name for path in tmp_path.rglob("*")] == ["latents"] * (to == "delphi")


def test_exports_need_no_torch() -> None:
    code = (
        "import sys, gradsae_fast.export, gradsae_fast.cli_export; assert not {'torch', 'anndata'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("to", FORMATS)
def test_an_address_of_object_storage_is_refused_and_becomes_no_file(
    store: ScoreStore, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="cannot lie in object storage; expected a path on a disk"):
        export_scores(store, f"s3://bucket/{NAMES[to]}", to=to, **ASKED)
    assert not list((tmp_path / "s3:" / "bucket").iterdir())
