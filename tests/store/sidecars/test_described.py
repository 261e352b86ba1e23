"""What decoder rows say is kept whole or not at all, replaced in one step, and checked by verify and repair."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gradsae_fast.errors import FormatError, StoreError
from gradsae_fast.store import Described, open_scores, repair, verify
from gradsae_fast.store.places.durable import document_bytes, read_document
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.commits import stage
from gradsae_fast.store.sidecars import described as module
from gradsae_fast.store.sidecars.described import described_record, publish_described, read_described
from tests.store.synthetic import SITE

FIELDS = ("promoted_CT", "promoted_effect_CT", "suppressed_CT", "suppressed_effect_CT", "neighbours_CK", "cosine_CK")


def make_described(seed: int = 0, *, latents: int = 64, tokens: int = 3, neighbours: int = 5) -> Described:
    rng = np.random.default_rng(seed)
    return Described(
        promoted_CT=rng.integers(0, 2**32, (latents, tokens)).astype(np.uint32),
        promoted_effect_CT=rng.normal(size=(latents, tokens)).astype(np.float32),
        suppressed_CT=rng.integers(0, 2**32, (latents, tokens)).astype(np.uint32),
        suppressed_effect_CT=rng.normal(size=(latents, tokens)).astype(np.float32),
        neighbours_CK=rng.integers(0, latents, (latents, neighbours)).astype(np.uint32),
        cosine_CK=rng.uniform(-1, 1, (latents, neighbours)).astype(np.float32),
    )


def assert_same(got: Described | None, expected: Described) -> None:
    assert got is not None
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))
        assert getattr(got, field).dtype == getattr(expected, field).dtype


def groups(store: Path) -> list[str]:
    return [path.name for path in (store / "described").iterdir() if path.is_dir()]


@pytest.mark.parametrize("profile", ["compact", "portable"])
def test_tables_come_back_bit_for_bit(finished: Path, profile: str) -> None:
    assert open_scores(finished).described(SITE) is None
    written = make_described()
    publish_described(finished, {SITE: written}, profile)
    assert_same(open_scores(finished).described(SITE), written)
    assert open_scores(finished).described("another site") is None
    assert verify(finished) == []


def test_a_site_off_the_residual_stream_has_neighbours_and_no_tokens(finished: Path) -> None:
    inside, outside = make_described(1), make_described(2, latents=7, tokens=0)
    publish_described(finished, {SITE: inside, "blocks.0.hook_z": outside}, "compact")
    assert_same(read_described(finished, SITE), inside)
    assert_same(read_described(finished, "blocks.0.hook_z"), outside)
    assert verify(finished) == []


def test_a_general_zarr_reader_opens_them(finished: Path) -> None:
    written = make_described()
    record = publish_described(finished, {SITE: written}, "portable")
    group: Any = zarr.open_group(finished / record.folder, mode="r")
    assert group.attrs["format"] == "gradsae.described"
    np.testing.assert_array_equal(group[f"sites/{SITE}/neighbours"][:], written.neighbours_CK.ravel())


def test_writing_again_replaces_them_and_leaves_nothing_behind(finished: Path) -> None:
    publish_described(finished, {SITE: make_described(1)}, "compact")
    stray = finished / "described" / ".tmp-0123"
    stray.write_bytes(b"half")
    second = make_described(2, tokens=4)
    publish_described(finished, {SITE: second}, "compact")
    assert_same(read_described(finished, SITE), second)
    assert len(groups(finished)) == 1
    assert not stray.exists()
    assert verify(finished) == []


def test_a_write_that_fails_leaves_the_old_tables(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_described(1)
    publish_described(finished, {SITE: first}, "compact")

    def full_disk(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(StoreError, match="disk full"):
        publish_described(finished, {SITE: make_described(2)}, "compact")
    assert_same(read_described(finished, SITE), first)
    monkeypatch.undo()
    publish_described(finished, {SITE: first}, "compact")
    assert len(groups(finished)) == 1


def test_readers_beside_a_writer_see_old_or_new_tables_whole(finished: Path) -> None:
    versions = [make_described(seed) for seed in range(3)]
    publish_described(finished, {SITE: versions[0]}, "compact")
    writer = threading.Thread(
        target=lambda: [publish_described(finished, {SITE: versions[turn % 3]}, "compact") for turn in range(6)]
    )
    writer.start()
    seen = 0
    while writer.is_alive() or not seen:
        found = read_described(finished, SITE)
        assert found is not None
        assert_same(found, next(one for one in versions if (one.promoted_CT == found.promoted_CT).all()))
        seen += 1
    writer.join()


def test_damage_is_named_and_repair_takes_it_out_without_touching_scores(finished: Path) -> None:
    record = publish_described(finished, {SITE: make_described()}, "compact")
    shard = finished / record.folder / f"sites/{SITE}/cosine/c.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 4
    shard.write_bytes(data)
    assert {fault.object for fault in verify(finished)} == {str(shard.relative_to(finished))}
    with pytest.raises(StoreError, match="cosine"):
        read_described(finished, SITE)
    told: list[str] = []
    assert repair(finished, tell=told.append) == []
    assert told == ["dropped described/commit.json; the command that wrote it writes it again"]
    assert verify(finished) == []
    store = open_scores(finished)
    assert store.is_complete
    assert store.described(SITE) is None


def test_a_half_copied_folder_is_refused_with_a_remedy(finished: Path) -> None:
    record = publish_described(finished, {SITE: make_described()}, "compact")
    shutil.rmtree(finished / record.folder / f"sites/{SITE}/promoted")
    with pytest.raises(StoreError, match=r"is missing; run `gradsae describe .* --all` again"):
        read_described(finished, SITE)


def test_a_newer_format_is_refused(finished: Path) -> None:
    publish_described(finished, {SITE: make_described()}, "compact")
    path = described_record(finished)
    Path(str(path)).write_bytes(document_bytes({**read_document(path), "format_version": 2}))
    with pytest.raises(FormatError, match="format version 2"):
        read_described(finished, SITE)


def test_tables_of_unequal_shapes_are_refused() -> None:
    whole = make_described()
    tables = {field: getattr(whole, field) for field in FIELDS}
    for field in FIELDS:
        with pytest.raises(StoreError, match=r"expected \[C, T\] four times"):
            module.Described(**tables | {field: tables[field][:-1]})


def test_writing_again_in_a_bucket_leaves_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    store: Any = place_of(f"memory://described-{tmp_path.name}/scores")
    first = publish_described(store, {SITE: make_described(1)}, "compact")
    stage(store, "described/0123456789abcdef", [("zarr.json", b"{}")], {})
    second = publish_described(store, {SITE: make_described(2)}, "compact")
    assert first.folder != second.folder
    assert sorted(groups(store)) == sorted(["0123456789abcdef", second.folder.removeprefix("described/")])
    assert_same(read_described(store, SITE), make_described(2))
