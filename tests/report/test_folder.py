"""Where an audit is written, and what it may replace."""

import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsae_fast.errors import ConfigError, StoreError
from gradsae_fast.report import ReportSummary, write_report
from gradsae_fast.store import ScoreStore


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_store_gives_the_same_bytes(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    report("a", groups=["party"], k=12)
    report("b", groups=["party"], k=12)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_an_audit_is_replaced_whole(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    report(k=12)
    before = files(tmp_path / "audit")
    summary = report(k=3)
    after = files(tmp_path / "audit")
    assert len([name for name in after if name.startswith("latents/")]) == 3 == summary.num_latents
    assert set(after) < set(before)
    assert summary.num_files == len(after)
    assert summary.num_bytes == sum(map(len, after.values()))
    assert summary.largest_page == max(len(data) for name, data in after.items() if name.endswith(".html"))
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]


@pytest.mark.parametrize("name", ["notes.txt", "latents/notes.txt"])
def test_a_folder_with_files_of_others_is_left_alone(
    report: Callable[..., ReportSummary], tmp_path: Path, name: str
) -> None:
    report(k=3)
    (tmp_path / "audit" / name).write_text("mine", encoding="utf-8")
    before = files(tmp_path / "audit")
    with pytest.raises(ConfigError, match=re.escape(name)):
        report(k=3)
    assert files(tmp_path / "audit") == before


def test_a_folder_that_is_no_audit_is_refused(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/index.html").write_text("mine", encoding="utf-8")
    (tmp_path / "audit/audit.json").write_text(json.dumps({"format": "other", "files": ["index.html"]}))
    with pytest.raises(ConfigError, match="no audit wrote"):
        report()


def test_a_file_in_the_folders_place_is_refused(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a file"):
        report()


def test_an_empty_folder_is_taken_and_missing_parents_are_made(
    report: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    (tmp_path / "audit").mkdir()
    report(k=1)
    report("deeper/audit", k=1)
    assert files(tmp_path / "audit") == files(tmp_path / "deeper/audit")


def test_a_store_is_no_place_for_an_audit(store: ScoreStore) -> None:
    with pytest.raises(ConfigError, match="lies in the store"):
        write_report(store, str(store.path / "audit"))
    with pytest.raises(ConfigError, match="no audit wrote"):
        write_report(store, str(store.path))


def test_an_error_in_the_middle_leaves_the_old_audit_and_nothing_else(
    report: Callable[..., ReportSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(k=3)
    before = files(tmp_path / "audit")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradsae_fast.report.folder.AuditFolder.finish", full_disk)
    with pytest.raises(StoreError, match="disk full"):
        report(k=4)
    assert files(tmp_path / "audit") == before
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]


@pytest.mark.parametrize("what", ["part", "old"])
def test_what_a_killed_run_left_is_removed_by_the_next(
    report: Callable[..., ReportSummary], tmp_path: Path, what: str
) -> None:
    report(k=1)
    left = tmp_path / f".audit.{what}-0123456789ab"
    (left / "latents").mkdir(parents=True)
    (left / "latents/000001.html").write_text("half", encoding="utf-8")
    report(k=2)
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]


def test_folders_of_others_and_of_runs_that_live_stay(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    others = {
        ".audit.part-0123456789ab": "notes.txt",
        ".audit.part-mine": "index.html",
        ".other.part-0123456789ab": "index.html",
        ".audit.part-ba9876543210": "index.html",
    }
    for folder, name in others.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("mine", encoding="utf-8")
    (tmp_path / ".audit.part-aaaaaaaaaaaa").symlink_to(tmp_path / ".audit.part-mine")
    descriptor = os.open(tmp_path / ".audit.part-ba9876543210", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    report(k=1)
    os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {*others, "audit", ".audit.part-aaaaaaaaaaaa"}
    assert all((tmp_path / folder / name).exists() for folder, name in others.items())


def test_the_marker_names_every_file_and_the_scores(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    report(k=2)
    marker = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))
    assert marker["format"] == "gradsae.audit"
    assert {*marker["files"], "audit.json"} == set(files(tmp_path / "audit"))
    assert marker["run"] in (tmp_path / "audit/index.html").read_text(encoding="utf-8")


def test_an_address_of_object_storage_is_refused_and_becomes_no_folder(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="cannot lie in object storage"):
        write_report(store, "s3://bucket/audit")
    assert not list(tmp_path.iterdir())
