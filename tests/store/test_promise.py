"""What is promised of a store depends on where it lies, and nothing is promised of what nobody has tried."""

from pathlib import Path

import pytest

from gradsae_fast.store import promise
from gradsae_fast.store.promise import file_system, promise_facts, promise_of, sentences

MOUNTS = r"""
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:20 / {root}/memory rw shared:5 - tmpfs tmpfs rw,size=24576k
23 21 0:21 / {root}/far rw - nfs4 server:/export rw
24 21 0:22 / {root}/a\040space rw - xfs /dev/vdb rw
25 23 0:23 / {root}/far/near rw - btrfs /dev/vdc rw
26 21 0:24 / {root}/memory rw - xfs /dev/vdd rw
""".lstrip()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which file systems of several types are mounted, as far as Linux's list says."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.replace("{root}", str(tmp_path)), encoding="utf-8")
    monkeypatch.setattr(promise, "MOUNTS", mounts)
    return tmp_path


def test_the_file_system_is_that_of_the_innermost_and_latest_mount(root: Path) -> None:
    assert file_system(root / "scores") == "ext4"
    assert file_system(root / "far" / "scores") == "nfs4"
    assert file_system(root / "far" / "near" / "scores") == "btrfs"
    assert file_system(root / "far" / "nearly") == "nfs4"
    assert file_system(root / "a space" / "scores") == "xfs"
    assert file_system(root / "memory" / "scores") == "xfs"


def test_a_store_that_is_reached_by_a_link_lies_where_the_link_leads(root: Path) -> None:
    (root / "far").mkdir()
    (root / "link").symlink_to(root / "far")
    assert file_system(root / "link") == "nfs4"


def test_a_local_disk_is_crash_and_power_safe(root: Path) -> None:
    said = "\n".join(sentences(promise_of(root / "scores")))
    assert "crash-safe: " in said
    assert "power-safe as far as fsync on ext4 reaches the disk" in said
    assert "multi-writer" in said


def test_a_network_file_system_is_promised_nothing_that_was_not_tried(root: Path) -> None:
    found = promise_of(root / "far" / "scores")
    assert (found.crash_safe, found.power_safe, found.multi_writer) == (None, None, None)
    (said,) = sentences(found)
    assert said.startswith("none: nothing was tried on a file system of type nfs4")


def test_memory_does_not_survive_a_power_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promise, "file_system", lambda path: "tmpfs")
    found = promise_of(root)
    assert (found.crash_safe, found.power_safe) == (True, False)
    assert "not power-safe: tmpfs is memory" in sentences(found)


def test_where_mounts_are_not_listed_the_medium_is_unknown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promise, "MOUNTS", root / "absent")
    assert file_system(root) == "unknown"
    assert promise_facts(promise_of(root))["power_safe"] is None


def test_programs_get_the_trials_and_their_date(root: Path) -> None:
    facts = promise_facts(promise_of(root))
    assert facts["measured"] == promise.MEASURED
    assert facts["trials"] == promise.TRIALS
    assert facts["medium"] == "ext4"
