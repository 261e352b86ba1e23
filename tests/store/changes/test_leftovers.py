"""What a drop or compacting could not delete is told, and the way to be rid of it is true."""

import itertools
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.compact import compact
from gradsae_fast.drop import drop
from gradsae_fast.errors import BucketError, QueryError, StoreError
from gradsae_fast.store import open_scores, verify
from gradsae_fast.store.places.object_client import ObjectClient
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records import commits
from gradsae_fast.store.records.effective import read_effective
from gradsae_fast.store.sidecars.exact import ExactWriter
from tests.store.corpora import OLD, corpus_segment, open_corpus_writer, write_corpus
from tests.store.synthetic import SITE

GONE = f"{OLD}-2-1"
_names = itertools.count()


class Killed(BaseException):
    """The process ends at once."""


@pytest.fixture(params=["disk", "bucket"])
def store(request: Any, tmp_path: Path) -> Place:
    """A complete store on a disk and in a bucket."""
    if request.param == "bucket":
        pytest.importorskip("obstore")
        return write_in(place_of(f"memory://leftovers-{next(_names)}/scores"))
    return write_in(tmp_path / "scores")


@pytest.fixture
def bucket() -> Place:
    """A complete store in a bucket."""
    pytest.importorskip("obstore")
    return write_in(place_of(f"memory://leftovers-{next(_names)}/scores"))


def write_in(place: Any, numbers: Iterable[int] | None = None) -> Any:
    return write_corpus(place, OLD, numbers)


def deny_deletion(patch: pytest.MonkeyPatch) -> None:
    """Let nothing below `segments` be deleted."""

    def denied(client: ObjectClient, keys: Sequence[str], real: Any = ObjectClient.delete) -> None:
        if any("/segments/" in key for key in keys):
            raise BucketError("the storage refused: AccessDenied on DeleteObject")
        real(client, keys)

    patch.setattr(ObjectClient, "delete", denied)
    patch.setattr(shutil, "rmtree", lambda _folder, **_settings: None)


def folders(store: Place, room: str = "segments") -> set[str]:
    return {f"{room}/{path.name}" for path in (store / room).iterdir()}


def visible(store: Place) -> set[str]:
    return {record.folder for record in read_effective(store).records.values()}


def kill_while_writing(store: Any, number: int, patch: pytest.MonkeyPatch) -> str:
    """Leave a segment whose record was never written; return its folder."""
    before = folders(store)

    def kill(*_arguments: Any) -> None:
        raise Killed

    with patch.context() as inner:
        inner.setattr(commits, "create_exclusive", kill)
        with pytest.raises(Killed), open_corpus_writer(store, OLD) as writer:
            writer.write(corpus_segment(OLD, number))
    (left,) = folders(store) - before
    return left


def test_a_server_that_still_lists_emptied_folders_is_no_reason_to_say_that_texts_are_left(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [path.name for path in (bucket / "segments").iterdir()]

    def remembering(client: ObjectClient, key: str, real: Any = ObjectClient.entries) -> list[str]:
        return sorted({*real(client, key), *(f"{key}/{name}" for name in before if key.endswith("/segments"))})

    monkeypatch.setattr(ObjectClient, "entries", remembering)
    assert drop(bucket, GONE).num_documents == 1
    compact(bucket)
    assert open_scores(bucket).index is not None


@pytest.mark.parametrize("named", [{"document": GONE}, {"where": "Party=Whig"}])
def test_a_drop_that_could_not_delete_names_the_folders_and_the_same_command_deletes_them(
    store: Place, named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folders(store)
    with monkeypatch.context() as patch:
        deny_deletion(patch)
        for _ in range(2):  # the second one has nothing more to drop, and the folders are still there
            with pytest.raises(StoreError, match="run the same command again, which deletes them") as caught:
                drop(store, **named)
            old = before - visible(store)
            assert old
            assert all(folder in str(caught.value) for folder in sorted(old)[:5])
    if "document" in named:
        assert drop(store, **named).num_before == 1
    else:
        with pytest.raises(QueryError):  # no document meets the condition any more
            drop(store, **named)
    assert folders(store) == visible(store)
    assert verify(store) == []


def test_compacting_that_could_not_delete_names_the_folders_and_the_same_command_deletes_them(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = sorted(folders(store))
    with monkeypatch.context() as patch:
        deny_deletion(patch)
        with pytest.raises(StoreError, match=rf"{first}.* run the same command again, which deletes them"):
            compact(store)
    compact(store)
    assert folders(store) == visible(store)
    assert open_scores(store).index is not None


def test_a_drop_in_a_bucket_names_what_killed_writers_left_of_its_segments_and_a_sweep_deletes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("obstore")
    store = write_in(place_of(f"memory://leftovers-{next(_names)}/scores"), [0, 1])
    left = kill_while_writing(store, 2, monkeypatch)
    later = kill_while_writing(store, 3, monkeypatch)
    write_in(store)
    assert drop(store, f"{OLD}-1-1").unfinished == ()
    assert drop(store, GONE).unfinished == (left,)
    assert drop(store, GONE).unfinished == (left,)
    assert {left, later} < folders(store)
    assert drop(store, sweep=True).unfinished == ()
    assert folders(store) == visible(store)
    assert verify(store) == []


def test_a_sweep_deletes_exact_effects_and_indices_that_no_record_names(bucket: Place) -> None:
    opened = open_scores(bucket)
    dense = {SITE: np.array([4, 6])}
    writer = ExactWriter(bucket, opened.segments, opened.profile, 0.2, dense)
    drops = {(SITE, "next-token"): np.ones((opened.segments[2].num_documents, 2), np.float32)}
    record = writer.write(opened.segments[2], drops)
    (bucket / "exact" / "commits" / "000002.json").unlink()
    commits.stage(bucket, "index/0123456789abcdef-0123456789abcdef", [("zarr.json", b"{}")], {})
    assert drop(bucket, GONE).unfinished == (f"exact/{record.folder}",)
    drop(bucket, sweep=True)
    assert folders(bucket, "exact") == set()
    assert sorted(path.suffix for path in (bucket / "index").iterdir()) == ["", ".json"]
    assert open_scores(bucket).index is not None


def test_a_sweep_needs_no_documents_and_a_drop_does(bucket: Place) -> None:
    assert drop(bucket, sweep=True).num_documents == 0
    for settings in ({}, {"sweep": True, "dry_run": True}, {"document": GONE, "where": "Party=Whig", "sweep": True}):
        with pytest.raises(QueryError, match="expected either keys"):
            drop(bucket, **settings)


def test_a_pass_of_exact_effects_in_a_bucket_leaves_alone_what_another_one_is_writing(bucket: Place) -> None:
    opened = open_scores(bucket)
    drops = {(SITE, "next-token"): np.ones((opened.segments[0].num_documents, 2), np.float32)}

    def begin(share: float) -> ExactWriter:
        return ExactWriter(bucket, opened.segments, opened.profile, share, {SITE: np.array([4, 6])})

    old = begin(0.2).write(opened.segments[0], drops)
    at_work = commits.new_attempt(1)
    commits.stage(bucket / "exact", at_work, [("zarr.json", b"{}")], {})
    assert begin(0.2).committed == {0}
    assert folders(bucket / "exact") == {old.folder, at_work}
    assert begin(0.3).committed == frozenset()
    assert folders(bucket / "exact") == {at_work}
