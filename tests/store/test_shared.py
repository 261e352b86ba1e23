"""Many writers of one store at once: each segment is committed once, with the bytes that any of them would write."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from gradsae_fast.errors import BusyError, StoreError
from gradsae_fast.store import ScoreWriter, open_scores, verify
from gradsae_fast.store.places import lock
from gradsae_fast.store.places.lock import WriterLock, locked
from gradsae_fast.store.records import commits
from tests.store.sharing import NUM_SEGMENTS, write_all
from tests.store.synthetic import SITE, make_segment

OpenWriter = Callable[..., ScoreWriter]
ROOT = Path(__file__).parents[2]
WRITERS = 3


def start(what: str, folder: Path, ranks: Iterable[int], rounds: int) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.store.sharing", what, str(folder)]
    return [subprocess.Popen([*command, str(rank), str(WRITERS), str(rounds)], cwd=ROOT) for rank in ranks]


@pytest.fixture
def alone(tmp_path: Path) -> list[str]:
    """The digests of the segments that a writer alone writes."""
    write_all(tmp_path / "alone", list(range(NUM_SEGMENTS)), shared=False)
    return [segment.digest for segment in open_scores(tmp_path / "alone").segments]


def test_of_writers_that_race_for_a_segment_one_commits_it(tmp_path: Path) -> None:
    rounds, winners = 200, set()
    writers = start("commits", tmp_path, range(WRITERS), rounds)
    assert [writer.wait(300) for writer in writers] == [0] * WRITERS
    for number in range(rounds):
        store = tmp_path / str(number)
        (attempt,) = (store / "segments").iterdir()
        record = commits.read_record(commits.record_path(store, 0))
        assert record.folder == f"segments/{attempt.name}"
        assert (attempt / "object").read_bytes() == bytes([number])
        assert [path.name for path in (store / "commits").iterdir()] == ["000000.json"]
        winners.add(record.writer["process"])
    assert len(winners) == WRITERS


def test_writers_that_race_for_every_segment_leave_each_once(tmp_path: Path, alone: list[str]) -> None:
    rounds = 8
    writers = start("stores", tmp_path, range(WRITERS), rounds)
    assert [writer.wait(300) for writer in writers] == [0] * WRITERS
    for number in range(rounds):
        store = open_scores(tmp_path / str(number) / "scores")
        assert [segment.digest for segment in store.segments] == alone
        assert len(list((store.path / "segments").iterdir())) == NUM_SEGMENTS, "who comes second removes its attempt"
        assert not list((tmp_path / str(number)).rglob(".tmp-*"))
        assert len(list((store.path / "dictionary").iterdir())) == 2
        assert verify(store.path) == []


def test_a_writer_killed_beside_others_leaves_them_alone_and_its_leftovers_go_at_the_next_start(
    tmp_path: Path, alone: list[str]
) -> None:
    rounds = 6
    writers = start("stores", tmp_path, range(WRITERS), rounds)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (tmp_path / "2" / "scores" / "segments").exists():
        time.sleep(0.002)
    writers[-1].kill()
    assert writers[-1].wait() == -signal.SIGKILL
    for number in range(rounds):  # the others wait for it before each round
        (tmp_path / str(number)).mkdir(exist_ok=True)
        (tmp_path / str(number) / f"ready-{WRITERS - 1}").touch()
    assert [writer.wait(120) for writer in writers[:-1]] == [0] * (WRITERS - 1)
    for number in range(rounds):
        path = tmp_path / str(number) / "scores"
        write_all(path, [], shared=True)
        assert [segment.digest for segment in open_scores(path).segments] == alone
        assert len(list((path / "segments").iterdir())) == NUM_SEGMENTS
        assert not list(path.rglob(".tmp-*"))


def test_a_shared_writer_sees_what_others_commit(open_writer: OpenWriter) -> None:
    with open_writer(shared=True) as first, open_writer(shared=True) as second:
        first.write(make_segment(0))
        assert second.committed == frozenset()
        assert second.is_committed(0)
        assert second.refresh() == {0}
        assert second.write(make_segment(0)).digest == open_scores(first.path).segments[0].digest
        with pytest.raises(StoreError, match=r"committed by another writer .* with other content"):
            second.write(make_segment(0, seed=7))
    assert len(list((first.path / "segments").iterdir())) == 1


def test_beside_others_nothing_is_deleted_and_alone_everything_that_is_not_committed(
    open_writer: OpenWriter, tmp_path: Path
) -> None:
    with open_writer(shared=True):
        attempt = tmp_path / "scores" / "segments" / "000001-of-another"
        half = tmp_path / "scores" / "commits" / ".tmp-of-another"
        attempt.mkdir()
        half.touch()
        open_writer(shared=True).close()
        assert attempt.exists()
        assert half.exists()
    open_writer(shared=True).close()
    assert not attempt.exists()
    assert not half.exists()


def test_one_writer_alone_and_shared_ones_keep_each_other_out(open_writer: OpenWriter) -> None:
    with open_writer(), pytest.raises(BusyError, match="is being written by process"):
        open_writer(shared=True, wait=0.1)
    with open_writer(shared=True) as shared:
        with pytest.raises(BusyError, match="one of several workers"):
            open_writer()
        with pytest.raises(BusyError), locked(Path(str(shared.path))):
            pass
        open_writer(shared=True, wait=0.0).close()
    open_writer().close()


def test_a_worker_waits_for_the_one_that_begins_the_store(open_writer: OpenWriter, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    held = WriterLock(tmp_path / "scores", shared=True)
    assert held.alone
    waiting = threading.Thread(target=lambda: open_writer(shared=True, wait=30).close())
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    held.share()
    waiting.join(10)
    assert not waiting.is_alive()
    held.release()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / lock.LOCK_FILE).symlink_to(treasure)
    with pytest.raises(StoreError), locked(tmp_path / "scores"):
        pass
    assert treasure.read_text() == "gold"


def test_what_the_first_worker_kept_is_what_all_get(open_writer: OpenWriter) -> None:
    with open_writer(shared=True) as first, open_writer(shared=True, run={"host": "there"}) as second:
        assert first.keep_facts("gate", {"median": 1.5}) == {"median": 1.5}
        assert second.keep_facts("gate", {"median": 1.5000001}) == {"median": 1.5}
        first.write_dictionary(["a"], {SITE: np.ones(64)})
        second.write_dictionary(["a"], {SITE: np.ones(64)})
    assert open_scores(first.path).run == {"host": "here"}


@pytest.mark.parametrize("equal", [True, False])
def test_a_writer_that_slept_while_another_took_over_finds_its_segment_written(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch, equal: bool
) -> None:
    """Its half-written objects are gone, as after the loss of its lock; what counts is what was committed."""
    sleeper = open_writer()
    read_back = commits._read_back

    def sleep(attempt: Path, *args: object) -> None:
        monkeypatch.setattr(commits, "_read_back", read_back)
        sleeper._lock.release()
        with open_writer() as other:
            other.write(make_segment(0, seed=0 if equal else 7))
        assert not attempt.exists()
        read_back(attempt, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(commits, "_read_back", sleep)
    if equal:
        assert sleeper.write(make_segment(0)).digest == open_scores(sleeper.path).segments[0].digest
    else:
        with pytest.raises(StoreError, match=r"committed by another writer .* with other content"):
            sleeper.write(make_segment(0))
    assert verify(sleeper.path) == []
