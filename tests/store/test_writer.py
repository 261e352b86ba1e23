"""Creating, resuming, refusing."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.errors import BusyError, IdentityError, StoreError
from gradsae_fast.store import ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.records import commits
from tests.store.synthetic import IDENTITY, SITE, make_segment

OpenWriter = Callable[..., ScoreWriter]
HOLD = """
import sys
from gradsae_fast.store import ScoreWriter
with ScoreWriter.create_or_resume(sys.argv[1], run={}, identity={}, num_segments=4):
    print("holding", flush=True)
    sys.stdin.read()
"""


def on_disk(writer: ScoreWriter) -> Path:
    return Path(str(writer.path))


def test_a_resumed_run_skips_what_is_committed_and_clears_what_is_not(open_writer: OpenWriter) -> None:
    with open_writer(num_segments=3) as writer:
        writer.write(make_segment(1))
    (on_disk(writer) / "segments" / "000002-dead" / "tokens").mkdir(parents=True)
    (on_disk(writer) / "commits" / ".tmp-dead").touch()
    with open_writer(num_segments=3, run={"host": "there"}) as writer:
        assert writer.committed == {1}
        with pytest.raises(StoreError, match="segment 1 is committed already"):
            writer.write(make_segment(1))
        writer.write(make_segment(0))
        assert writer.committed == {0, 1}
    assert len(list((writer.path / "segments").iterdir())) == 2
    assert not list(on_disk(writer).rglob(".tmp-*"))
    assert open_scores(writer.path).run == {"host": "here"}


def test_equal_segments_give_equal_bytes_whoever_writes_them(open_writer: OpenWriter, tmp_path: Path) -> None:
    stores = []
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        with open_writer(path=tmp_path / name, run={"name": name}) as writer:
            for index in order:
                writer.write(make_segment(index))
        stores.append(open_scores(tmp_path / name))
    for first, second in zip(*(store.segments for store in stores), strict=True):
        left, right = first.commit, second.commit
        assert left.pop("writer") != right.pop("writer")
        assert left == right


def test_another_identity_is_refused_and_the_differing_fields_shown(open_writer: OpenWriter) -> None:
    open_writer().close()
    other = {"model": {"name": "large", "dtype": "float32"}, "sae": "9f"}
    with pytest.raises(IdentityError) as refusal:
        open_writer(identity=other, precision_bits=7)
    lines = [line.split() for line in str(refusal.value).splitlines()]
    assert ["identity.model.name", '"tiny"', '"large"'] in lines
    assert ["identity.corpus", '"0a1b"', "(absent)"] in lines
    assert ["identity.sae", "(absent)", '"9f"'] in lines
    assert ["settings.precision_bits", "10", "7"] in lines
    assert "dtype" not in str(refusal.value)
    assert "choose another folder" in str(refusal.value)
    open_writer().close()


def test_an_identity_with_tuples_and_nan_resumes(open_writer: OpenWriter) -> None:
    identity = {"sites": ("a", "b"), "limit": float("nan"), "none": {}}
    open_writer(identity=identity).close()
    open_writer(identity=identity).close()
    with pytest.raises(IdentityError, match="none"):
        open_writer(identity={**identity, "none": {"x": 1}})


@pytest.mark.parametrize("wrong", [{"precision_bits": 8}, {"profile": "zip"}, {"identity": {"x": object()}}])
def test_settings_that_the_format_does_not_have_are_refused(open_writer: OpenWriter, wrong: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="expected"):
        open_writer(**wrong)
    open_writer().close()


def test_a_folder_of_something_else_is_left_alone(open_writer: OpenWriter, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"not empty and not a store: it has thesis\.tex"):
        open_writer()
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        open_writer(path=tmp_path / "file")


def test_a_start_that_was_killed_early_can_be_repeated(open_writer: OpenWriter, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "writer.lock").touch()
    (tmp_path / "scores" / ".tmp-1234").touch()
    open_writer().close()


def test_a_second_writer_is_told_the_process_of_the_first(open_writer: OpenWriter, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "scores")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    with pytest.raises(BusyError, match=f"written by process {holder.pid}"):
        open_writer()
    assert open_scores(tmp_path / "scores").segments == []
    holder.communicate()
    open_writer(num_segments=4, identity={}, run={}).close()


def test_two_writers_in_one_process_are_refused_too(open_writer: OpenWriter) -> None:
    with open_writer(), pytest.raises(BusyError, match=str(os.getpid())):
        open_writer()


def test_a_segment_outside_the_plan_or_of_other_sites_is_refused(open_writer: OpenWriter) -> None:
    with open_writer() as writer:
        writer.write(make_segment(0))
        with pytest.raises(StoreError, match="segment 2 is outside the plan of 2"):
            writer.write(make_segment(2))
        with pytest.raises(StoreError, match="segment 1 has sites"):
            writer.write(make_segment(1, sites=("elsewhere",)))
        with pytest.raises(StoreError, match="segment 1 has objectives"):
            writer.write(make_segment(1, objectives=("entropy",)))


def test_a_dictionary_is_written_once_and_another_one_refused(open_writer: OpenWriter) -> None:
    norms = {SITE: np.ones(64)}
    with open_writer() as writer:
        writer.write_dictionary(["a"], norms)
        before = sorted(on_disk(writer).rglob("dictionary/**/*"))
        writer.write_dictionary(["a"], norms)
        assert sorted(on_disk(writer).rglob("dictionary/**/*")) == before
        with pytest.raises(IdentityError, match="another dictionary"):
            writer.write_dictionary(["b"], norms)


def test_facts_are_replaced_as_a_whole(open_writer: OpenWriter) -> None:
    with open_writer() as writer:
        assert writer.facts("gate") is None
        writer.write_facts("gate", {"loss": 3.5})
        writer.write_facts("gate", {"loss": 2.5})
        assert writer.facts("gate") == {"loss": 2.5}
    assert [path.name for path in (writer.path / "facts").iterdir()] == ["gate.json"]


class Failure:
    """Stands in for a function of `os` and fails with an errno from the n-th call on."""

    def __init__(self, function: Callable[..., Any], code: int, after: int = 0) -> None:
        self.function, self.code, self.left = function, code, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "after"),
    [("mkdir", 0), ("mkdir", 9), ("write", 0), ("write", 30), ("fsync", 0), ("fsync", 150), ("link", 0)],
)
def test_a_full_disk_loses_nothing_and_the_same_command_continues(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    with open_writer() as writer:
        writer.write(make_segment(0))
        monkeypatch.setattr(os, name, Failure(getattr(os, name), errno.ENOSPC, after))
        with pytest.raises(StoreError, match=r"disk full: .*segments stay valid; free space and run the same command"):
            writer.write(make_segment(1))
        monkeypatch.undo()
        assert writer.committed == {0}
        assert len(list((writer.path / "segments").iterdir())) == 1
        assert verify(writer.path) == []
        writer.write(make_segment(1))
    assert open_scores(writer.path).is_complete


def write_many(writer: ScoreWriter, count: int) -> None:
    for index in range(count):
        writer.write(make_segment(index))


def test_a_disk_that_is_really_full_loses_nothing(open_writer: OpenWriter, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        with open_writer(path=disk / "scores", num_segments=50) as writer:
            with pytest.raises(StoreError, match="disk full"):
                write_many(writer, 50)
            done = writer.committed
        assert 0 < len(done) < 50
        assert verify(disk / "scores") == []
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        with open_writer(path=disk / "scores", num_segments=50) as writer:
            assert writer.committed == done
            writer.write(make_segment(len(done)))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_is_said_to_be_read_only(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with open_writer() as writer:
        monkeypatch.setattr(os, "mkdir", Failure(os.mkdir, code))
        with pytest.raises(StoreError, match=r"read-only for this user .* choose another one"):
            writer.write(make_segment(0))
    with pytest.raises(StoreError, match="read-only for this user"):
        open_writer(path=writer.path.with_name("new"))


def test_a_file_system_without_hard_links_is_refused_at_the_start(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", Failure(os.link, errno.EOPNOTSUPP))
    with pytest.raises(StoreError, match=r"does not take hard links .* put the store on a local disk"):
        open_writer()


def test_a_file_system_that_overwrites_is_refused_at_the_start(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(StoreError, match="let the same name be created twice"):
        open_writer()


def test_a_disk_that_gives_back_other_bytes_is_not_trusted(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer() as writer:
        monkeypatch.setattr(commits, "read_pieces", lambda path: [path.read_bytes()[::-1]])
        with pytest.raises(StoreError, match="gave back other bytes than were written"):
            writer.write(make_segment(0))
        monkeypatch.undo()
    assert open_scores(writer.path).segments == []


def test_an_interrupt_leaves_a_valid_store_with_or_without_the_segment(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_then_interrupt(*args: Any) -> None:
        link(*args)
        raise KeyboardInterrupt

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    for index, replacement in enumerate((interrupt, link_then_interrupt)):
        with open_writer() as writer:
            monkeypatch.setattr(os, "link", replacement)
            with pytest.raises(KeyboardInterrupt):
                writer.write(make_segment(1))
            monkeypatch.undo()
        assert verify(writer.path) == []
        assert len(open_scores(writer.path).segments) == index


def test_closing_waits_for_the_thread_that_writes(open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another run would clear what the thread is about to commit."""
    begun, go_on = threading.Event(), threading.Event()
    read_back = commits._read_back

    def slow_read_back(*args: Any) -> None:
        begun.set()
        assert go_on.wait(10)
        read_back(*args)

    monkeypatch.setattr(commits, "_read_back", slow_read_back)
    writer = open_writer()
    writing = threading.Thread(target=writer.write, args=(make_segment(0),))
    closing = threading.Thread(target=writer.close)
    writing.start()
    assert begun.wait(10)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    with pytest.raises(BusyError):
        open_writer()
    go_on.set()
    for thread in (writing, closing):
        thread.join()
    monkeypatch.setattr(commits, "_read_back", read_back)
    with open_writer() as resumed:
        assert resumed.committed == {0}


def test_a_segment_that_another_machine_committed_meanwhile_is_taken_if_equal(open_writer: OpenWriter) -> None:
    first = open_writer()
    first._lock.release()  # what a network file system without locks amounts to
    with open_writer() as second:
        assert first.write(make_segment(0)).digest == second.write(make_segment(0)).digest
        first.write(make_segment(1))
        with pytest.raises(StoreError, match=r"committed by another writer .* with other content"):
            second.write(make_segment(1, seed=7))
    assert verify(first.path) == []
    assert len(list((first.path / "segments").iterdir())) == 2


def test_what_does_not_fit_together_is_refused_before_anything_is_written(open_writer: OpenWriter) -> None:
    good = make_segment(0)
    scores, tokens, documents = good.sites[SITE], good.tokens, good.documents
    swapped = scores.indices.copy()
    row = int(np.flatnonzero(np.diff(scores.indptr) > 1)[0])
    swapped[scores.indptr[row] : scores.indptr[row + 1]] = scores.indices[scores.indptr[row] : scores.indptr[row + 1]][
        ::-1
    ]
    position = tokens.position.astype(np.int64)
    position[0] = -1
    wrong = {
        "ascend": replace(good, sites={SITE: replace(scores, indices=swapped)}),
        "latent ids .* of 3": replace(good, sites={SITE: replace(scores, num_latents=3)}),
        "indptr has 40": replace(good, sites={SITE: replace(scores, indptr=scores.indptr[1:])}),
        "indptr does not rise": replace(good, sites={SITE: replace(scores, indptr=scores.indptr + 1)}),
        "activation has": replace(good, sites={SITE: replace(scores, activation=scores.activation[1:])}),
        "different objectives": replace(good, sites={SITE: scores, "b": replace(scores, projections={})}),
        "no site": replace(good, sites={}),
        "tokens.mask has 39": replace(good, tokens=replace(tokens, mask=tokens.mask[1:])),
        "document order": replace(good, tokens=replace(tokens, document=tokens.document[::-1])),
        "beyond the 4": replace(good, tokens=replace(tokens, document=tokens.document + 9)),
        "'text' has 1": replace(good, documents=replace(documents, text=["x"])),
        "holds -1 to": replace(good, tokens=replace(tokens, position=position)),
    }
    with open_writer() as writer:
        for what, segment in wrong.items():
            with pytest.raises(StoreError, match=what):
                writer.write(segment)
        assert list((writer.path / "segments").iterdir()) == []
        writer.write(good)


def test_a_damaged_store_is_not_resumed(open_writer: OpenWriter) -> None:
    with open_writer() as writer:
        writer.write(make_segment(0))
    next(on_disk(writer).rglob("by_token/indices/c.0")).unlink()
    with pytest.raises(StoreError, match=r"segment 0 is damaged: its object sites/.* run `gradsae repair`"):
        open_writer()


def test_a_store_copied_without_its_commit_records_keeps_its_segments(finished: Path, open_writer: OpenWriter) -> None:
    shutil.rmtree(finished / "commits")
    for question in (open_writer, lambda: open_scores(finished), lambda: repair(finished)):
        with pytest.raises(StoreError, match="half-copied"):
            question()
    assert len(list((finished / "segments").iterdir())) == 2


def test_the_writer_says_how_far_it_is(open_writer: OpenWriter) -> None:
    with open_writer() as writer:
        writer.write(make_segment(0))
        assert repr(writer) == f"<ScoreWriter {writer.path}: 1 of 2 segments committed>"
    assert open_scores(writer.path).identity == IDENTITY


def test_a_closed_writer_writes_no_more(open_writer: OpenWriter) -> None:
    with open_writer() as closed:
        closed.write(make_segment(0))
    with open_writer():
        for write in (
            lambda: closed.write(make_segment(1)),
            lambda: closed.write_facts("gate", {}),
            lambda: closed.keep_facts("gate", {}),
            lambda: closed.write_dictionary(["a"], {SITE: np.ones(64)}),
        ):
            with pytest.raises(StoreError, match=r"this writer was closed.*create_or_resume"):
                write()
    assert closed.committed == {0}
    assert closed.facts("gate") is None
