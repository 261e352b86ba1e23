"""Every damage is found and named; repair and a second run heal it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradsae_fast.errors import BusyError, FormatError, StoreError
from gradsae_fast.store import ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.places.durable import document_bytes, read_document
from tests.store.synthetic import make_segment

OpenWriter = Callable[..., ScoreWriter]


def folder_of(store: Path, index: int) -> Path:
    folder: str = read_document(store / "commits" / f"{index:06d}.json")["writer"]["folder"]
    return store / folder


def flip(path: Path, rng: np.random.Generator) -> bytes:
    """Flip one bit of a file; return what it was."""
    before = path.read_bytes()
    after = bytearray(before)
    after[rng.integers(len(after))] ^= 1 << int(rng.integers(8))
    path.write_bytes(after)
    return before


def digests(store: Path) -> list[str]:
    return [segment.digest for segment in open_scores(store).segments]


def test_a_sound_store_has_no_fault(finished: Path) -> None:
    assert verify(finished) == []
    assert verify(finished, quick=True) == []
    assert repair(finished) == []


def segment_of(name: str) -> int | None:
    """The segment that a file belongs to, by its path in the store."""
    folder, _, rest = name.partition("/")
    return int(rest[:6]) if folder in ("segments", "commits") else None


def test_one_flipped_bit_in_any_file_is_found_and_named(finished: Path) -> None:
    rng = np.random.default_rng(3)
    names = [str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()]
    checked = [name for name in names if segment_of(name) != 1 and name != "writer.lock"]
    assert len(checked) > 90
    for name in checked:
        before = flip(finished / name, rng)
        faults = verify(finished)
        assert {(fault.object, fault.segment) for fault in faults} == {(name, segment_of(name))}
        assert name in str(faults[0])
        (finished / name).write_bytes(before)
    assert verify(finished) == []


def test_a_flipped_bit_is_an_error_for_the_reader_too(finished: Path) -> None:
    rng = np.random.default_rng(4)
    for name in ("tokens/token_id/c.0", "tokens/mask/c.0", "documents/text/bytes/c.0"):
        for _ in range(20):
            before = flip(folder_of(finished, 0) / name, rng)
            segment = open_scores(finished).segments[0]
            with pytest.raises(StoreError, match=f"segment 0, {name[:-4]}: "):
                segment.tokens() if name.startswith("tokens") else segment.documents()
            (folder_of(finished, 0) / name).write_bytes(before)


def test_quick_checks_metadata_and_lengths_and_leaves_contents(finished: Path) -> None:
    rng = np.random.default_rng(5)
    shard = folder_of(finished, 1) / "tokens/position/c.0"
    before = flip(shard, rng)
    assert verify(finished, quick=True) == []
    assert [(fault.segment, fault.object[-19:]) for fault in verify(finished)] == [(1, "tokens/position/c.0")]
    shard.write_bytes(before[:-1])
    (fault,) = verify(finished, quick=True)
    assert "bytes, committed were" in fault.what
    shard.write_bytes(before)
    flip(shard.with_name("zarr.json"), rng)
    assert len(verify(finished, quick=True)) == 1


def test_missing_and_exchanged_objects_are_named(finished: Path) -> None:
    first, second = folder_of(finished, 0), folder_of(finished, 1)
    exchanged = [folder / "tokens/context/c.0" for folder in (first, second)]
    contents = [path.read_bytes() for path in exchanged]
    assert len(contents[0]) == len(contents[1])
    for path, data in zip(exchanged, reversed(contents), strict=True):
        path.write_bytes(data)
    (first / "documents/row/zarr.json").unlink()
    found = {(fault.segment, fault.object.split("/", 2)[2]) for fault in verify(finished)}
    assert found == {(0, "tokens/context/c.0"), (1, "tokens/context/c.0"), (0, "documents/row/zarr.json")}


def test_a_record_under_another_name_or_with_another_digest_is_a_fault(finished: Path) -> None:
    records = finished / "commits"
    shutil.copy(records / "000000.json", records / "000001.json")
    (fault,) = verify(finished)
    assert (fault.segment, fault.what) == (1, "is the record of segment 0")
    document = read_document(records / "000000.json")
    (records / "000000.json").write_bytes(document_bytes({**document, "digest": "0" * 64}))
    assert "its digest is not that of its objects" in verify(finished)[0].what


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "record", "folder"])
def test_repair_and_a_second_run_heal_to_the_same_bytes(finished: Path, open_writer: OpenWriter, damage: str) -> None:
    before = digests(finished)
    shard = next(folder_of(finished, 1).rglob("by_latent/activation/c.0"))
    if damage == "flip":
        flip(shard, np.random.default_rng(6))
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif damage == "delete":
        shard.unlink()
    elif damage == "record":
        (finished / "commits/000001.json").write_bytes(b"{}")
    else:
        shutil.rmtree(folder_of(finished, 1))
    assert repair(finished) == [1]
    assert verify(finished) == []
    assert digests(finished) == before[:1]
    with open_writer() as writer:
        assert writer.committed == {0}
        writer.write(make_segment(1))
    assert digests(finished) == before
    assert verify(finished) == []
    assert len(list((finished / "segments").iterdir())) == 2


def test_a_damaged_dictionary_or_sidecar_is_dropped_and_written_again(finished: Path, open_writer: OpenWriter) -> None:
    next(finished.rglob("dictionary/*/tokens/bytes/c.0")).unlink()
    (finished / "facts/gate.json").write_bytes(b"x")
    assert repair(finished) == []
    store = open_scores(finished)
    assert (store.token_strings(), store.facts("gate")) == (None, None)
    with open_writer() as writer:
        writer.write_dictionary(["the"], {})
    assert open_scores(finished).token_strings() == ["the"]
    assert verify(finished) == []


def test_what_cannot_be_recomputed_is_not_dropped(finished: Path) -> None:
    flip(finished / "run.json", np.random.default_rng(7))
    with pytest.raises(StoreError, match=r"run.json.* cannot be recomputed: restore it"):
        repair(finished)
    with pytest.raises(StoreError, match=r"run.json is damaged"):
        open_scores(finished)


def test_verify_and_repair_refuse_what_they_do_not_know(
    finished: Path, tmp_path: Path, open_writer: OpenWriter
) -> None:
    for question in (verify, repair):
        with pytest.raises(StoreError, match="is not a store"):
            question(tmp_path)
    with open_writer(), pytest.raises(BusyError):
        repair(finished)
    document = read_document(finished / "run.json")
    (finished / "run.json").write_bytes(document_bytes({**document, "format_version": 3}))
    with pytest.raises(FormatError):
        verify(finished)
