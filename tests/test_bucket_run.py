"""Every command that reads or writes a store takes one in a bucket, and says there what it says of one on a disk."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gradsae_fast import open_scores
from gradsae_fast.cli import app
from gradsae_fast.config import ExtractConfig
from gradsae_fast.describe import describe_every
from gradsae_fast.errors import StoreError
from gradsae_fast.estimate import estimate
from gradsae_fast.extract import extract
from gradsae_fast.jacobian.store import open_writer as open_jacobian_writer
from gradsae_fast.store import ScoreWriter
from tests.store.synthetic import IDENTITY, make_segment

_names = count()
QUESTIONS: list[list[object]] = [
    ["rank", "latents", "{}", "-k", 5, "--format", "json"],
    ["rank", "documents", "{}", "--latent", 3, "--format", "json"],
    ["rank", "tokens", "{}", "--latent", 3, "--context", 4, "--format", "json"],
    ["rank", "oddities", "{}", "--format", "json"],
    ["verify", "{}"],
    ["verify", "{}", "--quick"],
]


@pytest.fixture
def address() -> str:
    """Where nothing is yet, in a bucket that ends with the process."""
    return f"memory://run-{next(_names)}/runs/scores.gradsae"


@pytest.fixture
def in_bucket(configure: Any, address: str) -> ExtractConfig:
    """A run into the bucket."""
    config: ExtractConfig = configure("unused", store={"path": address})
    return config


def digests(path: Any) -> list[str]:
    return [segment.digest for segment in open_scores(path).segments]


def said(*words: object) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{words}\n{result.output}\n{result.exception!r}"
    return str(result.stdout)


def test_a_run_into_a_bucket_leaves_what_one_onto_a_disk_leaves_and_resumes(
    in_bucket: ExtractConfig, configure: Any, address: str
) -> None:
    on_disk = configure("scores")
    extract(on_disk)
    report = extract(in_bucket)
    assert str(report.store) == address
    assert digests(address) == digests(on_disk.store.path)
    again = extract(in_bucket)
    assert (again.num_segments, again.num_skipped) == (0, report.num_segments)
    assert open_scores(address).index is not None


def test_a_command_says_of_a_bucket_what_it_says_of_a_disk(
    in_bucket: ExtractConfig, configure: Any, address: str
) -> None:
    on_disk = configure("scores")
    extract(on_disk)
    extract(in_bucket)
    for words in QUESTIONS:
        there, here = (
            said(*(str(word).format(place) for word in words)).replace(place, "")
            for place in (address, on_disk.store.path)
        )
        assert there == here, words


def test_other_commands_work_on_a_bucket(in_bucket: ExtractConfig, address: str, tmp_path: Path) -> None:
    extract(in_bucket)
    assert json.loads(said("info", address, "--json"))["path"] == address
    assert "described" in str(describe_every(address, tokens=2, neighbours=2)) or open_scores(address).sites
    assert open_scores(address).described(open_scores(address).sites[0]) is not None
    said("certify", address, "--pairs", 4, "--documents", 1)
    said("index", address)
    said("report", address, "-o", tmp_path / "audit")
    said("export", address, "--to", "parquet", "-o", tmp_path / "scores.parquet")
    said("compare", address, address, "--match", "same")
    said("repair", address)
    assert said("verify", address)


def test_stores_in_a_bucket_are_merged_compacted_and_copied_back(address: str, tmp_path: Path) -> None:
    ends: list[list[list[str]]] = []
    for room in (address, str(tmp_path)):
        for name, present in {"a": (0, 1, 2), "b": (2,)}.items():
            where = f"{room}/{name}"
            with ScoreWriter.create_or_resume(where, run={}, identity=IDENTITY, num_segments=3) as writer:
                for index in present:
                    writer.write(make_segment(index))
        said("merge", f"{room}/a", f"{room}/b", "--out", f"{room}/c")
        said("drop", f"{room}/c", "address-1")
        said("compact", f"{room}/c")
        said("merge", f"{room}/c", "--out", tmp_path / f"back-{len(ends)}")
        ends.append([digests(f"{room}/c"), digests(tmp_path / f"back-{len(ends)}")])
        assert len(digests(f"{room}/c")) == 1
        for store in (f"{room}/c", tmp_path / "back-0"):
            assert said("verify", store).startswith("no fault found")
    assert ends[0] == ends[1]


def test_an_estimate_for_a_bucket_knows_no_free_space(in_bucket: ExtractConfig, address: str) -> None:
    found = estimate(in_bucket)
    assert found.free_bytes is None
    assert found.store_bytes > 0
    with pytest.raises(StoreError, match="does not exist"):
        open_scores(address)


def test_a_profile_of_a_run_into_a_bucket_lies_in_the_working_folder(
    configure: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = extract(configure("unused", store={"path": address}, run={"trace": True}))
    assert report.trace == Path("scores.gradsae.trace.json")
    assert (tmp_path / report.trace).exists()


def test_a_jacobian_store_in_a_bucket_is_refused(tmp_path: Path) -> None:
    from gradsae_fast.jacobian.store import JacobianRun

    run = JacobianRun(identity={}, num_segments=1, run={})
    with pytest.raises(StoreError, match="cannot lie in object storage"), open_jacobian_writer("s3://bucket/x", run):
        pass
