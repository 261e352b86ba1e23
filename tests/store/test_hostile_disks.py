"""Disks that are full, read-only, broken or taken away, and writers that meet: real processes, real small disks.

Where this user may mount (as root, in a mount namespace of the child's own), disks are tmpfs of the sizes named; where
not, these tests are skipped with the reason and the ones with limits on file sizes and failing calls remain.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED: tuple[list[int], ...] = ([], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3])


def run_child(name: str, work: Path, *, mounts: bool = False) -> Any:
    """Run a function of `hostile_child` and return its report."""
    prefix = ["unshare", "--mount", "--propagation", "private"] if mounts else []
    command = [*prefix, sys.executable, "-m", "tests.store.hostile_child", name, str(work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no small disk can be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=64k",
        "tmpfs",
        str(folder),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no small disks here: {error}")
    if done.returncode:
        pytest.skip(f"this user may not mount small disks: {done.stderr.strip()}")


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(("name", "at_least"), [("full_disks", 16), ("few_inodes", 10)])
def test_on_a_disk_of_any_size_a_full_one_loses_nothing_and_more_space_finishes_it(
    tmp_path: Path, name: str, at_least: int
) -> None:
    found = run_child(name, tmp_path, mounts=True)
    full = [one for one in found if one["error"] is not None]
    assert len(full) >= at_least
    assert len({len(one["committed"]) for one in full}) >= 4  # it was full before, between and in segments
    for one in full:
        assert "disk full: " in one["error"], one
        assert "committed segments stay valid; free space and run the same command again" in one["error"]
    for one in found:
        assert one["committed"] in COMMITTED, one
        assert (one["faults"], one["again"], one["same"], one["leftovers"]) == ([], None, True, []), one


@pytest.mark.usefixtures("may_mount")
def test_a_read_only_disk_can_be_read_and_a_writer_is_told_so(tmp_path: Path) -> None:
    found = run_child("read_only_disk", tmp_path, mounts=True)
    assert (found["faults"], found["read"]) == ([], 4)
    assert len(found["errors"]) == 3
    for error in found["errors"]:
        assert "is read-only for this user" in error
        assert "choose another one" in error


def test_permission_that_is_lost_before_or_in_the_midst_of_a_segment_loses_nothing(tmp_path: Path) -> None:
    found = run_child("lost_permission", tmp_path)
    for one in found:
        if one["store"] not in ("start-facts", "start-dictionary"):  # written before permission went
            assert "is read-only for this user" in one["error"], one
        assert (one["again"], one["same"]) == (None, True), one


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    found = run_child("file_size_quota", tmp_path)
    full = [one for one in found if one["error"] is not None]
    assert len(full) >= 4
    for one in full:
        assert "disk full: " in one["error"]
    for one in found:
        assert (one["again"], one["same"]) == (None, True), one


def test_a_call_to_the_system_that_fails_once_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    found = run_child("broken_disk", tmp_path)
    assert sum(one["failed"] for one in found) >= 20
    for one in found:
        if one["error"] is not None:
            assert "Input/output error" in one["error"], one
        else:
            assert not one["failed"], one
        assert one["committed"] in COMMITTED
        assert (one["again"], one["same"], one["leftovers"]) == (None, True, []), one


def test_of_two_writers_at_once_one_is_told_that_the_other_writes(tmp_path: Path) -> None:
    found = run_child("two_writers", tmp_path)
    assert len(found) == 50
    for one in found:
        assert one["codes"] in ([0, 0], [0, 3]), one  # 3: BusyError; both may succeed one after the other
        assert (one["again"], one["same"], one["leftovers"]) == (None, True, []), one
    assert sum(one["codes"] == [0, 3] for one in found) >= 25


def test_a_stopped_writer_keeps_others_out_and_a_killed_one_is_taken_over_from(tmp_path: Path) -> None:
    found = run_child("paused_writer", tmp_path)
    assert f"is being written by process {found['child']}" in found["while_stopped"]
    assert found["readable"] == [0, 1]
    assert (found["again"], found["same"], found["leftovers"]) == (None, True, [])


def test_a_worker_that_wakes_up_too_late_loses_without_harm(tmp_path: Path) -> None:
    found = run_child("late_worker", tmp_path)
    assert (found["code"], found["kept"]) == (0, True)
    assert (found["again"], found["same"], found["leftovers"]) == (None, True, [])


def test_clocks_and_ages_of_files_do_not_matter(tmp_path: Path) -> None:
    found = run_child("wrong_clocks", tmp_path)
    assert {"2100", "1970", "2038", "1999"} & set(found["times"])
    assert (found["again"], found["same"]) == (None, True)


def test_a_fork_does_not_give_the_lock_away_and_threads_may_write(tmp_path: Path) -> None:
    found = run_child("forks_and_threads", tmp_path)
    assert "is being written by process" in found["after_fork"]
    assert found["same"]
