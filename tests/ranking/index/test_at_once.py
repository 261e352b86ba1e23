"""Indices made in a bucket, where no lock keeps other processes from the store meanwhile."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gradsae_fast.errors import BusyError, StoreError
from gradsae_fast.ranking import rank_latents, tally
from gradsae_fast.ranking.index import build_index, make
from gradsae_fast.store import open_scores, repair, verify
from gradsae_fast.store.places.durable import create_exclusive, replace_file
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records import commits
from gradsae_fast.store.sidecars import index as sidecar
from tests.store.corpora import OLD, write_corpus

_names = itertools.count()


@pytest.fixture
def bucket() -> Any:
    """A place in a bucket."""
    pytest.importorskip("obstore")
    return place_of(f"memory://indices-{next(_names)}/scores")


def num_objects(store: Any) -> int:
    return len((store / "index").lengths_below())


def once_after_opening(patch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Do something once, between the opening of the store and the reading of it."""
    done = list[bool]()

    def scope(*arguments: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return tally.scope(*arguments)

    patch.setattr(make, "scope", scope)


def test_an_index_is_not_made_of_a_store_that_changes_meanwhile(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(bucket, OLD, [0, 1, 2])
    once_after_opening(monkeypatch, lambda: write_corpus(bucket, OLD, shared=True))
    with pytest.raises(BusyError, match="while its index was made"):
        build_index(bucket)
    assert open_scores(bucket).index is None
    assert num_objects(bucket) == 0
    build_index(bucket)
    assert len(open_scores(bucket).segments) == 4
    assert verify(bucket) == []


def test_an_index_that_lacks_a_segment_is_refused_and_found_and_made_anew(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(bucket, OLD, [0, 1, 2])
    with monkeypatch.context() as patch:  # as an index was made that took its name from a later listing
        taken = sidecar.current_generation
        once_after_opening(patch, lambda: write_corpus(bucket, OLD, shared=True))
        patch.setattr(make, "current_generation", lambda _store: "0" * 16)
        build_index(bucket)
        wrong, right = bucket / "index" / f"{'0' * 16}.json", sidecar.index_record(bucket, taken(bucket))
        replace_file(right, wrong.read_bytes())
    with pytest.raises(StoreError, match=r"not of the segments that are there: it differs in segment 3.*gradsae index"):
        open_scores(bucket)
    faults = verify(bucket)
    assert [fault.object for fault in faults] == [f"index/{right.name}"]
    assert "of other segments" in faults[0].what
    repair(bucket, tell=lambda _sentence: None)
    assert len(open_scores(bucket).segments) == 4
    build_index(bucket)
    assert verify(bucket) == []


def test_two_builders_at_once_leave_one_index_that_has_its_objects(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(bucket, OLD)
    both = threading.Barrier(2)

    def together(path: Any, data: bytes) -> None:
        both.wait(20)  # each has written its objects, and neither its record
        create_exclusive(path, data)

    errors = list[BaseException]()

    def build() -> None:
        try:
            build_index(bucket)
        except (StoreError, threading.BrokenBarrierError) as error:
            errors.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(commits, "create_exclusive", together)
        builders = [threading.Thread(target=build) for _ in range(2)]
        for builder in builders:
            builder.start()
        for builder in builders:
            builder.join()
    assert not errors
    store = open_scores(bucket)
    assert store.index is not None
    assert rank_latents(store, k=2).num_rows == 2
    assert verify(bucket) == []
    before = num_objects(bucket)
    build_index(bucket)
    assert num_objects(bucket) == before


def test_an_index_leaves_alone_what_another_process_is_still_writing(bucket: Any) -> None:
    write_corpus(bucket, OLD, [0, 1, 2])
    build_index(bucket)
    before = num_objects(bucket)
    commits.stage(bucket, "index/0123456789abcdef-0123456789abcdef", [("zarr.json", b"{}")], {})
    write_corpus(bucket, OLD)
    build_index(bucket)
    assert num_objects(bucket) == before + 1
    assert len(list((bucket / "index").glob("*.json"))) == 1
