"""Segments in the place of others: dropped documents, compacted segments, and both when things break."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from gradsae_fast.errors import BusyError, FormatError, QueryError, StoreError
from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreWriter, open_scores, reader, repair, verify
from gradsae_fast.store.changes import revise, rewrite
from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.changes.rewrite import concatenate, leave_out
from gradsae_fast.store.places.durable import document_bytes, read_document
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.records.effective import effective, read_effective
from gradsae_fast.store.records.revisions import read_revisions
from tests.store.synthetic import IDENTITY, SITE, make_segment

NUM_SEGMENTS = 5
DROPPED = {"0/1", "2/0", "2/3"}


def made(index: int) -> SegmentScores:
    """Segment `index`: four documents with keys and texts of their own."""
    segment = make_segment(index, num_tokens=20, num_documents=4, num_latents=16)
    keys = [f"{index}/{slot}" for slot in range(4)]
    texts = [f"secret of {key}: ß → 文" for key in keys]
    return replace(segment, documents=replace(segment.documents, key=keys, text=texts))


def write(path: Path, segments: Sequence[SegmentScores], num_segments: int = NUM_SEGMENTS) -> Path:
    with ScoreWriter.create_or_resume(path, run={}, identity=IDENTITY, num_segments=num_segments) as writer:
        for segment in segments:
            writer.write(segment)
    return path


def resumed(path: Path) -> set[int]:
    """What the same run computes when it is started again."""
    with ScoreWriter.create_or_resume(path, run={}, identity=IDENTITY, num_segments=NUM_SEGMENTS) as writer:
        missing = set(range(NUM_SEGMENTS)) - writer.committed
        for index in missing:
            writer.write(made(index))
    return missing


def digests(path: Path) -> dict[int, str]:
    return {segment.index: segment.digest for segment in open_scores(path).segments}


def keys(path: Path) -> list[str]:
    return [key for segment in open_scores(path).segments for key in segment.document_keys()]


def files(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def folder_of(path: Path, index: int) -> Path:
    """The folder of an effective segment."""
    return path / read_effective(path).records[index].folder


def num_folders(path: Path) -> int:
    return len(list((path / "segments").iterdir()))


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "scores", [made(index) for index in range(NUM_SEGMENTS)])


@pytest.fixture
def whole(whole_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_once, tmp_path / "scores"))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The digests of a store that was written without the dropped documents."""
    path = tmp_path_factory.mktemp("without") / "scores"
    return digests(write(path, [leave_out(made(index), DROPPED) for index in range(NUM_SEGMENTS)]))


def test_what_is_dropped_is_as_if_it_had_never_been_there(whole: Path, without: dict[int, str]) -> None:
    report = drop_documents(whole, DROPPED)
    assert digests(whole) == without
    assert (report.num_documents, report.num_segments, report.num_before) == (3, 2, 0)
    assert report.bytes_after is not None
    assert 0 < report.bytes_after < report.bytes_before
    assert report.num_tokens == open_scores_tokens(DROPPED)
    assert keys(whole) == [f"{i}/{n}" for i in range(NUM_SEGMENTS) for n in range(4) if f"{i}/{n}" not in DROPPED]
    assert verify(whole) == verify(whole, quick=True) == []
    assert num_folders(whole) == NUM_SEGMENTS


def open_scores_tokens(dropped: set[str]) -> int:
    segments = [made(index) for index in range(NUM_SEGMENTS)]
    return sum(
        int(count)
        for segment in segments
        for key, count in zip(segment.documents.key, segment.documents.num_tokens, strict=True)
        if key in dropped
    )


def test_the_text_of_a_dropped_document_is_in_no_file(whole: Path) -> None:
    drop_documents(whole, DROPPED)
    raw = b"".join(files(whole).values())
    texts = [text for segment in open_scores(whole).segments for text in segment.documents().text]
    assert not any(f"secret of {key}:" in text for key in DROPPED for text in texts)
    assert not any(f"secret of {key}:".encode() in raw for key in DROPPED)
    named = {
        f"segments/{found.parts[found.parts.index('segments') + 1]}" for found in whole.rglob("segments/*/zarr.json")
    }
    assert named == {record.folder for record in read_effective(whole).records.values()}


def test_a_drop_of_many_segments_is_several_revisions_with_the_same_end(
    whole: Path, without: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revise, "_LONGEST_RECORD", 1)
    at_once = drop_documents(whole, DROPPED, dry_run=True)
    assert replace(drop_documents(whole, DROPPED), bytes_after=None) == at_once
    assert len(read_revisions(whole)) == at_once.num_segments > 1
    assert digests(whole) == without
    assert verify(whole) == []


def test_documents_are_dropped_one_after_the_other(whole: Path, without: dict[int, str]) -> None:
    for key in sorted(DROPPED):
        drop_documents(whole, [key])
    assert digests(whole) == without
    assert [len(revision.dropped) for revision in read_revisions(whole)] == [1, 1, 1]
    assert num_folders(whole) == NUM_SEGMENTS


def test_a_segment_that_lost_all_its_documents_is_not_seen_and_counts_as_done(whole: Path) -> None:
    drop_documents(whole, [f"2/{slot}" for slot in range(4)])
    store = open_scores(whole)
    assert [segment.index for segment in store.segments] == [0, 1, 3, 4]
    assert store.is_complete
    assert resumed(whole) == set()
    compact_segments(whole)
    assert [segment.index for segment in open_scores(whole).segments] == [0]
    assert keys(whole) == [f"{i}/{n}" for i in (0, 1, 3, 4) for n in range(4)]
    assert open_scores(whole).is_complete


def test_a_key_that_is_dropped_already_is_passed_over(whole: Path, without: dict[int, str]) -> None:
    drop_documents(whole, ["0/1"])
    report = drop_documents(whole, DROPPED)
    assert (report.num_documents, report.num_before) == (2, 1)
    report = drop_documents(whole, DROPPED)
    assert (report.num_documents, report.num_before, report.num_segments) == (0, 3, 0)
    assert digests(whole) == without
    assert len(read_revisions(whole)) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["0/1", "absent", "gone"], "has the key 'absent', 'gone'; nothing was dropped: known: '0/0', "),
        ([], "got no document to drop"),
        ([f"{i}/{n}" for i in range(NUM_SEGMENTS) for n in range(4)], "these are all of the 20 documents of"),
    ],
)
def test_what_cannot_be_dropped_is_named_and_nothing_is_done(whole: Path, asked: list[str], message: str) -> None:
    before = files(whole)
    for dry_run in (True, False):
        with pytest.raises(QueryError, match=message):
            drop_documents(whole, asked, dry_run=dry_run)
    assert files(whole).keys() == before.keys()
    assert not read_revisions(whole)


def test_a_dry_run_says_the_same_and_changes_nothing(whole: Path) -> None:
    before = files(whole)
    planned = drop_documents(whole, DROPPED, dry_run=True)
    compacted = compact_segments(whole, tokens_per_segment=40, dry_run=True)
    assert files(whole) == before
    assert (planned.bytes_after, compacted.bytes_after) == (None, None)
    assert compact_segments(whole, tokens_per_segment=40).segments_after == compacted.segments_after == 3
    done = drop_documents(whole, DROPPED)
    assert (planned.num_documents, planned.num_tokens) == (done.num_documents, done.num_tokens)


def test_compacting_writes_what_longer_segments_would_have_been(whole: Path, tmp_path: Path) -> None:
    report = compact_segments(whole, tokens_per_segment=40)
    pairs = [concatenate([made(0), made(1)]), concatenate([made(2), made(3)]), made(4)]
    other = write(tmp_path / "other", [pairs[0], pairs[1], pairs[2]])
    assert digests(whole) == digests(other)
    assert (report.segments_before, report.segments_after, report.num_documents) == (5, 3, 20)
    assert report.bytes_after == sum(segment.num_bytes for segment in open_scores(whole).segments)
    assert report.bytes_after < report.bytes_before
    assert open_scores(whole).is_complete
    assert (resumed(whole), verify(whole), num_folders(whole)) == (set(), [], 3)


def test_compacting_again_changes_nothing_and_a_larger_limit_goes_on(whole: Path) -> None:
    compact_segments(whole, tokens_per_segment=40)
    once = files(whole)
    assert compact_segments(whole, tokens_per_segment=40).segments_after == 3
    assert files(whole) == once
    assert compact_segments(whole).segments_after == 1
    assert digests(whole) == {0: open_scores(whole).segments[0].digest}
    assert keys(whole) == [f"{i}/{n}" for i in range(NUM_SEGMENTS) for n in range(4)]
    assert open_scores(whole).is_complete


def test_segments_with_one_missing_between_them_stay_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "scores", [made(0), made(1), made(3), made(4)])
    assert compact_segments(path).segments_after == 2
    assert not open_scores(path).is_complete
    assert resumed(path) == {2}
    assert keys(path) == [f"{i}/{n}" for i in range(NUM_SEGMENTS) for n in range(4)]
    assert open_scores(path).is_complete
    assert compact_segments(path).segments_after == 1
    assert keys(path) == [f"{i}/{n}" for i in range(NUM_SEGMENTS) for n in range(4)]


def test_a_long_compaction_publishes_as_it_goes(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsae_fast.store.changes.revise._MOST_STAGED", 1)
    compact_segments(whole, tokens_per_segment=40)
    assert [len(revision.replaced) for revision in read_revisions(whole)] == [1, 1]
    assert len(open_scores(whole).segments) == 3


@pytest.mark.parametrize("compacted", [False, True])
def test_a_damaged_replacement_is_computed_again_without_what_was_dropped(
    whole: Path, without: dict[int, str], compacted: bool
) -> None:
    drop_documents(whole, DROPPED)
    if compacted:
        compact_segments(whole, tokens_per_segment=40)
    before, segment = digests(whole), open_scores(whole).segments[0]
    shard = folder_of(whole, 0) / "documents/text/bytes/c.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    (fault, *_) = verify(whole)
    assert (fault.segment, fault.object) == (0, f"segments/{segment.folder.name}/documents/text/bytes/c.0")
    assert repair(whole) == ([0, 1] if compacted else [0])
    assert verify(whole) == []
    assert not DROPPED & set(keys(whole))
    assert resumed(whole) == ({0, 1} if compacted else {0})
    assert not DROPPED & set(keys(whole))
    assert digests(whole) == ({**before, 0: without[0], 1: without[1]} if compacted else without)
    assert verify(whole) == []
    if compacted:
        compact_segments(whole, tokens_per_segment=40)
        assert digests(whole) == before


def test_a_segment_without_any_document_left_is_computed_again_to_nothing(whole: Path) -> None:
    drop_documents(whole, [f"0/{slot}" for slot in range(4)])
    compact_segments(whole, tokens_per_segment=40)
    drop_documents(whole, ["1/0"])
    shutil.rmtree(folder_of(whole, 0))
    assert 0 in repair(whole)
    assert 0 in resumed(whole)
    assert "1/0" not in keys(whole)
    assert not any(key.startswith("0/") for key in keys(whole))
    assert open_scores(whole).is_complete
    assert verify(whole) == []


@pytest.mark.parametrize("harm", ["record lost", "record flipped", "folder lost", "copy flipped"])
def test_a_lost_revision_is_refused_and_restored_from_its_copy(whole: Path, without: dict[int, str], harm: str) -> None:
    drop_documents(whole, ["0/1"])
    drop_documents(whole, ["2/0", "2/3"])
    record, copy = (whole / folder / "000002.json" for folder in ("revisions", "copies"))
    sound = record.read_bytes()
    if harm == "record lost":
        record.unlink()
    elif harm == "folder lost":
        shutil.rmtree(whole / "revisions")
    else:
        harmed = record if harm == "record flipped" else copy
        harmed.write_bytes(sound.replace(b"2", b"3", 1))
    if harm != "copy flipped":
        with pytest.raises(StoreError, match=r"revisions/00000[12]"):
            open_scores(whole)
        with pytest.raises(StoreError, match=r"revisions/00000[12]"):
            resumed(whole)
        with pytest.raises(StoreError, match=r"revisions/00000[12]"):
            drop_documents(whole, ["3/0"])
    assert {fault.object for fault in verify(whole)} >= {
        "copies/000002.json" if harm == "copy flipped" else "revisions/000002.json"
    }
    said: list[str] = []
    assert repair(whole, tell=said.append) == []
    assert any("restored the record of revision 2" in line for line in said)
    assert record.read_bytes() == copy.read_bytes() == sound
    assert digests(whole) == without
    assert verify(whole) == []


def test_a_revision_that_is_lost_with_its_copy_never_brings_documents_back(whole: Path) -> None:
    drop_documents(whole, ["0/1"])
    drop_documents(whole, ["2/0"])
    (whole / "copies/000001.json").unlink()
    (whole / "revisions/000001.json").write_bytes(b"{}")
    for what in (open_scores, repair, resumed):
        with pytest.raises(StoreError, match=r"revisions/000001.json"):
            what(whole)
    (whole / "revisions/000001.json").unlink()
    for what in (open_scores, resumed):
        with pytest.raises(StoreError, match=r"its copy in .* is missing too"):
            what(whole)
    with pytest.raises(StoreError, match="documents that were dropped could come back"):
        repair(whole)


def test_a_copy_that_a_killed_process_did_not_write_is_no_fault_and_written_by_the_next(whole: Path) -> None:
    drop_documents(whole, DROPPED)
    shutil.rmtree(whole / "copies")
    assert verify(whole) == []
    assert resumed(whole) == set()
    assert (whole / "copies/000001.json").read_bytes() == (whole / "revisions/000001.json").read_bytes()


def test_a_commit_record_of_before_a_drop_is_not_believed(whole: Path) -> None:
    old = (whole / "commits/000000.json").read_bytes()
    drop_documents(whole, ["0/1"])
    shutil.rmtree(folder_of(whole, 0))
    assert repair(whole) == [0]
    (whole / "commits/000000.json").write_bytes(old)
    with pytest.raises(StoreError, match="of before 1 of its documents were dropped"):
        open_scores(whole)
    assert any("must not come back" in fault.what for fault in verify(whole))


def test_a_superseded_commit_record_is_only_looked_at_as_a_record(whole: Path, without: dict[int, str]) -> None:
    drop_documents(whole, DROPPED)
    (whole / "commits/000000.json").write_bytes(b"{}")
    assert [(fault.segment, fault.object) for fault in verify(whole)] == [(0, "commits/000000.json")]
    assert repair(whole) == []
    assert verify(whole) == []
    assert resumed(whole) == set()
    assert digests(whole) == without


def test_a_damaged_segment_is_not_rewritten(whole: Path) -> None:
    """What it says would have sound checksums afterwards."""
    for name in ("tokens/token_id/c.0", "documents/key/zarr.json", "sites/model.layers.3/by_latent/activation/c.0"):
        path = folder_of(whole, 2) / name
        before = path.read_bytes()
        path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
        with pytest.raises(StoreError, match="segment 2 is not rewritten"):
            drop_documents(whole, ["0/1", "2/3"]) if "key" not in name else compact_segments(whole)
        path.write_bytes(before)
        assert (read_revisions(whole), num_folders(whole)) == ([], NUM_SEGMENTS)


def test_what_was_staged_and_not_published_is_cleared(whole: Path, without: dict[int, str]) -> None:
    (whole / "segments/000002-r-dead/tokens").mkdir(parents=True)
    (whole / "exact/r000001-0123456789abcdef/commits").mkdir(parents=True)
    (whole / "exact/r000001-0123456789abcdef/segments").mkdir(parents=True)
    drop_documents(whole, DROPPED)
    assert num_folders(whole) == NUM_SEGMENTS
    assert not list((whole / "exact").iterdir())
    assert digests(whole) == without


def test_nobody_writes_meanwhile(whole: Path) -> None:
    with locked(whole):
        for act in (lambda: drop_documents(whole, ["0/1"]), lambda: compact_segments(whole)):
            with pytest.raises(BusyError, match=f"written by process {os.getpid()}"):
                act()
        assert drop_documents(whole, ["0/1"], dry_run=True).num_documents == 1


def test_a_store_of_version_1_is_left_as_it_is(whole: Path) -> None:
    run = read_document(whole / "run.json")
    (whole / "run.json").write_bytes(document_bytes({**run, "format_version": 1}))
    before = files(whole)
    for act in (lambda: drop_documents(whole, ["0/1"]), lambda: compact_segments(whole)):
        with pytest.raises(FormatError, match="gradsae merge"):
            act()
    assert files(whole) == before


def test_who_has_a_store_open_is_told_to_open_it_again(whole: Path) -> None:
    store = open_scores(whole)
    store.segments[1].documents()
    drop_documents(whole, ["0/1"])
    with pytest.raises(BusyError, match="has put another segment in its place since the store was opened"):
        store.segments[0].documents()
    with pytest.raises(BusyError, match="open it again"):
        store.check_objects()
    assert store.segments[1].site(SITE).by_token().num_latents == 16


@pytest.mark.parametrize("step", ["find_records", "find_revisions", "read_record", "read_revision"])
def test_a_store_is_opened_while_segments_are_replaced(whole: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """After any of its steps, the reader sees the store of before or of after, and never a half."""
    drop_documents(whole, ["4/0"])
    calls = iter(range(100))
    function: Callable[..., Any] = getattr(reader, step)

    def slow(*arguments: Any) -> Any:
        found = function(*arguments)
        if next(calls) == 0:
            monkeypatch.undo()
            drop_documents(whole, ["0/1"])
            compact_segments(whole, tokens_per_segment=40)
        return found

    monkeypatch.setattr(reader, step, slow)
    store = open_scores(whole, use_index=False)
    assert [segment.index for segment in store.segments] == [0, 2, 4]
    store.check_objects()


def test_records_that_contradict_each_other_are_refused(whole: Path) -> None:
    drop_documents(whole, ["0/1"])
    drop_documents(whole, ["0/2"])
    first, second = read_revisions(whole)
    now = read_effective(whole)
    commits = {0: next(iter(now.records.values()))}
    with pytest.raises(StoreError, match="revision 2 comes where 1 is expected"):
        effective({}, [second], whole)
    with pytest.raises(StoreError, match="replaces a segment 0 of digest"):
        effective({}, [first, replace(first, number=2)], whole)
    with pytest.raises(StoreError, match=r"has digest .* the revision that replaced it says"):
        effective(commits, [first, second], whole)
    with pytest.raises(StoreError, match="drops document '0/1' of segment 0, which it does not replace"):
        effective({}, [replace(first, replaced=())], whole)
    assert effective({}, [first, second], whole).tombstones == {0: {"0/1", "0/2"}}


def test_dropping_needs_the_memory_of_one_segment_only(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    read = rewrite.read_scores

    def counted(segment: Any) -> SegmentScores:
        assert sum(one() is not None for one in alive) <= 1
        scores = read(segment)
        alive.append(ref(scores.tokens.token_id))
        return scores

    monkeypatch.setattr("gradsae_fast.store.changes.revise.read_scores", counted)
    drop_documents(whole, [f"{index}/0" for index in range(NUM_SEGMENTS)])
    assert len(alive) == NUM_SEGMENTS
    assert np.all([segment.num_documents == 3 for segment in open_scores(whole).segments])
