"""Who makes the index of a store that several workers completed, on a disk and in a bucket."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.engine import finish
from gradsae_fast.engine.finish import make_index
from gradsae_fast.errors import StoreError
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import ScoreWriter, open_scores, verify
from gradsae_fast.store.places.place import Place, place_of
from tests.store.synthetic import IDENTITY, make_segment


def open_writer(place: Place) -> ScoreWriter:
    return ScoreWriter.create_or_resume(place, run={}, identity=IDENTITY, num_segments=2, shared=True)


@pytest.fixture(params=["disk", "bucket"])
def complete(request: Any, tmp_path: Path) -> Place:
    """A complete store without an index."""
    if request.param == "bucket":
        pytest.importorskip("obstore")
    place = place_of(tmp_path / "scores" if request.param == "disk" else f"memory://{tmp_path.name}/scores")
    with open_writer(place) as writer:
        for index in range(2):
            writer.write(make_segment(index))
    return place


def test_the_index_is_made_once(complete: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    make_index(complete, tell=told.append)
    index = open_scores(complete).index
    assert index is not None
    monkeypatch.setattr("gradsae_fast.engine.finish.build_index", lambda _place: pytest.fail("it is there"))
    make_index(complete, tell=told.append)
    assert not told
    assert verify(complete) == []


def test_while_another_worker_is_at_it_the_index_is_left_to_it(
    complete: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    if isinstance(complete, Path):
        with open_writer(complete):
            make_index(complete, tell=told.append)
    else:

        def build_beside_another(place: Place) -> Any:
            make_index(place, tell=told.append)
            return build_index(place)

        monkeypatch.setattr("gradsae_fast.engine.finish.build_index", build_beside_another)
        make_index(complete, tell=told.append)
    (sentence,) = told
    assert sentence.startswith("no index is made now: ")
    assert "gradsae index" in sentence
    make_index(complete, tell=told.append)
    assert open_scores(complete).index is not None
    assert verify(complete) == []


def test_a_driver_waits_for_workers_that_are_about_to_let_go(tmp_path: Path, complete: Place) -> None:
    if not isinstance(complete, Path):
        pytest.skip("nobody holds a bucket")
    writer = open_writer(complete)
    told: list[str] = []

    def let_go(_seconds: float) -> None:
        writer.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", let_go)
        make_index(complete, tell=told.append, wait=60)
    assert open_scores(complete).index is not None
    assert not told
    shutil.rmtree(complete)


def test_a_claim_that_is_let_go_with_the_index_there_makes_no_second_one(
    complete: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(complete, Path):
        pytest.skip("a lock needs no claim")
    claim, built = finish._claim, list[Place]()

    def late(place: Place) -> bool:
        build_index(place)  # by another worker, after this one looked
        return claim(place)

    monkeypatch.setattr(finish, "_claim", late)
    monkeypatch.setattr(finish, "build_index", built.append)
    make_index(complete, tell=pytest.fail)
    assert not built
    assert open_scores(complete).index is not None
    assert not (complete / "index" / "claim").exists()


def test_a_worker_that_fails_lets_go_of_its_claim(complete: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_place: Place) -> None:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "build_index", fail)
        with pytest.raises(StoreError):
            make_index(complete, tell=pytest.fail)
    make_index(complete, tell=pytest.fail)
    assert open_scores(complete).index is not None
