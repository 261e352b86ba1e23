"""What a killed process did last is seen by the next one: it must survive a power cut before that one relies on it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from benchmarks.durability.disk import Disk, Recorder
from benchmarks.durability.power_loss import Killed
from gradsae_fast.errors import StoreError
from gradsae_fast.store import Described, open_scores, recovery, verify
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.places import durable
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records import commits
from gradsae_fast.store.sidecars import exact
from gradsae_fast.store.sidecars.described import publish_described, read_described
from gradsae_fast.store.sidecars.exact import ExactWriter
from tests.store.conftest import CopyOf
from tests.store.corpora import NEW, OLD, corpus_segment, open_corpus_writer, write_corpus
from tests.store.synthetic import SITE

CUTS = 8


@contextmanager
def recorded(store: Path) -> Iterator[Disk]:
    """The disk of a store, on which everything is recorded that this process does."""
    disk = Disk(store)
    with Recorder(disk, lambda makes_sure: None).recording():
        yield disk


@contextmanager
def killed_before_it_syncs(name: str, module: object = durable) -> Iterator[None]:
    """What happens inside ends where a folder of this name would be synced."""
    sync = durable.sync

    def die(path: Path) -> None:
        if path.name == name:
            raise Killed
        sync(path)

    with suppress(Killed), mock.patch.object(module, "sync", die):
        yield
        pytest.fail(f"{name} was not synced")


def after_power_cuts(disk: Disk, folder: Path) -> Iterator[Path]:
    """Stores as power cuts may leave them now."""
    for number in range(CUTS):
        clone = folder / f"clone-{number}"
        disk.write_clone(random.Random(number), clone)
        yield clone


def tables(value: int) -> Described:
    ids, values = np.full((24, 2), value, np.uint32), np.full((24, 2), value, np.float32)
    return Described(
        promoted_CT=ids,
        promoted_effect_CT=values,
        suppressed_CT=ids,
        suppressed_effect_CT=values,
        neighbours_CK=ids,
        cosine_CK=values,
    )


def test_a_segment_that_a_resumed_run_skips_is_there_after_a_power_cut(copy_of: CopyOf, tmp_path: Path) -> None:
    store = copy_of(OLD)
    (store / "commits" / "000003.json").unlink()
    with recorded(store) as disk:
        with open_corpus_writer(store, OLD) as writer, killed_before_it_syncs("commits"):
            writer.write(corpus_segment(OLD, 3))
        with open_corpus_writer(store, OLD) as writer:
            assert writer.committed == {0, 1, 2, 3}
    assert all(open_scores(clone).is_complete for clone in after_power_cuts(disk, tmp_path))


@pytest.mark.parametrize(
    "look", [lambda writer: writer.is_committed(3), lambda writer: 3 in writer.refresh()], ids=["one", "all"]
)
def test_a_segment_of_a_killed_worker_that_another_one_skips_is_there_after_a_power_cut(
    copy_of: CopyOf, tmp_path: Path, look: Callable[..., bool]
) -> None:
    store = copy_of(OLD)
    (store / "commits" / "000003.json").unlink()
    with recorded(store) as disk, open_corpus_writer(store, OLD, shared=True) as other:
        with open_corpus_writer(store, OLD, shared=True) as writer, killed_before_it_syncs("commits"):
            writer.write(corpus_segment(OLD, 3))
        assert look(other)
    assert all(open_scores(clone).is_complete for clone in after_power_cuts(disk, tmp_path))


def test_a_race_that_is_lost_to_a_killed_worker_is_won_for_good(copy_of: CopyOf, tmp_path: Path) -> None:
    store = copy_of(OLD)
    (store / "commits" / "000003.json").unlink()
    with recorded(store) as disk, open_corpus_writer(store, OLD, shared=True) as other:
        with open_corpus_writer(store, OLD, shared=True) as writer, killed_before_it_syncs("commits"):
            writer.write(corpus_segment(OLD, 3))
        other.write(corpus_segment(OLD, 3))
    assert all(open_scores(clone).is_complete for clone in after_power_cuts(disk, tmp_path))


def test_tables_that_replaced_others_are_there_after_a_power_cut_once_the_others_are_deleted(
    copy_of: CopyOf, tmp_path: Path
) -> None:
    store = copy_of(OLD)
    publish_described(store, {SITE: tables(0)}, "compact")
    move = durable.move

    def move_and_die(source: Place, target: Place) -> None:
        with killed_before_it_syncs("described"):
            move(source, target)
        raise Killed

    with recorded(store) as disk:
        with suppress(Killed), mock.patch("gradsae_fast.store.sidecars.described.move", move_and_die):
            publish_described(store, {SITE: tables(1)}, "compact")
        open_corpus_writer(store, OLD).close()
    for clone in after_power_cuts(disk, tmp_path):
        assert read_described(clone, SITE) is not None


@pytest.mark.parametrize("measures", [True, False])
def test_effects_that_were_taken_out_do_not_come_back_without_their_arrays(
    copy_of: CopyOf, tmp_path: Path, measures: bool
) -> None:
    store = copy_of(OLD)
    segments = open_scores(store).segments

    def measure(latent: int) -> ExactWriter:
        return ExactWriter(store, segments, "compact", 0.2, {SITE: np.array([latent])})

    drop_MK = np.ones((segments[0].num_documents, 1), np.float32)
    measure(0).write(segments[0], {(SITE, name): drop_MK for name in open_scores(store).objectives})
    with recorded(store) as disk:
        with locked(store), killed_before_it_syncs("commits", exact):
            measure(3)
        with locked(store):
            measure(3) if measures else recovery.recover(store, alone=True)
    for clone in after_power_cuts(disk, tmp_path):
        assert verify(clone) == []


def test_a_store_whose_first_writer_was_killed_at_once_is_there_after_a_power_cut(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "runs"
    folder.parent.mkdir()
    with recorded(folder) as disk:
        with killed_before_it_syncs("disk"):
            write_corpus(folder / "scores", OLD)
        with killed_before_it_syncs("runs"):
            write_corpus(folder / "scores", OLD)
        write_corpus(folder / "scores", OLD, [0])
    disk.sync(0)  # the folder that the tests began with
    for clone in after_power_cuts(disk, tmp_path):
        assert len(open_scores(clone / "scores").segments) == 1


def test_dropped_texts_do_not_come_back_with_a_power_cut(copy_of: CopyOf, tmp_path: Path) -> None:
    store = copy_of(OLD)
    with recorded(store) as disk:
        drop_documents(store, [f"{OLD}-1-0"])
    for clone in after_power_cuts(disk, tmp_path):
        assert len(list((clone / "segments").iterdir())) == 4


@pytest.mark.parametrize(
    "command",
    [lambda place: write_corpus(place, OLD, shared=True), lambda place: drop_documents(place, [f"{OLD}-1-0"])],
    ids=["extract", "drop"],
)
def test_a_corpus_that_somebody_appends_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[Place], object]
) -> None:
    bucket = place_of(f"memory://growing/{tmp_path.name}")
    write_corpus(bucket, OLD)  # type: ignore[arg-type]

    def slowly(store: Place) -> None:
        monkeypatch.setattr(recovery, "prepare", commits.prepare)
        write_corpus(store, NEW, [0], append=True, shared=True)  # type: ignore[arg-type]
        commits.prepare(store)

    monkeypatch.setattr(recovery, "prepare", slowly)
    command(bucket)
    assert len(open_scores(bucket).segments) == 5


def test_segments_of_no_generation_are_still_refused(copy_of: CopyOf) -> None:
    store = write_corpus(copy_of(OLD), NEW, append=True)
    (store / "generations" / "000001.json").unlink()
    with pytest.raises(StoreError, match=r"segment 4 is damaged: the plan has 4 segments"):
        open_corpus_writer(store, OLD)
