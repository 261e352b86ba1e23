"""What is kept beside the scores follows their documents: exact effects row by row, and the certificate."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.errors import StoreError
from gradsae_fast.store import ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.format.layout import Array
from gradsae_fast.store.records.effective import read_effective
from gradsae_fast.store.sidecars.certificate import Agreement, Certificate, read_certificate, write_certificate
from gradsae_fast.store.sidecars.exact import ExactWriter
from tests.store.synthetic import IDENTITY, SITE, make_segment

DENSE = np.array([3, 5, 11])
NUM_SEGMENTS = 3


def effects(index: int) -> Array:
    """Effects [M, K] of a segment: each tells its document, and one is NaN."""
    drop_MK = 100.0 * index + np.arange(12, dtype=np.float32).reshape(4, 3)
    drop_MK[2, 1] = np.nan
    return drop_MK


def write(path: Path, measured: int = NUM_SEGMENTS) -> Path:
    with ScoreWriter.create_or_resume(path, run={}, identity=IDENTITY, num_segments=NUM_SEGMENTS) as writer:
        for index in range(NUM_SEGMENTS):
            made = make_segment(index, num_tokens=16, num_latents=16)
            keys = [f"{index}/{slot}" for slot in range(4)]
            writer.write(dataclasses.replace(made, documents=dataclasses.replace(made.documents, key=keys)))
    store = open_scores(path)
    exact = ExactWriter(path, store.segments, store.profile, 0.25, {SITE: DENSE})
    for segment in store.segments[:measured]:
        exact.write(segment, {(SITE, "next-token"): effects(segment.index)})
    return path


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("measured") / "scores")


@pytest.fixture
def measured(measured_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured_once, tmp_path / "scores"))


def carried(path: Path) -> dict[str, list[float]]:
    """The effects of each document, by its key."""
    store = open_scores(path)
    exact = store.exact_dense()
    assert exact is not None
    assert (exact.missing, exact.share) == ((), 0.25)
    assert exact.latents[SITE].tolist() == DENSE.tolist()
    found = dict[str, list[float]]()
    for segment in store.segments:
        rows = exact.drops(segment.index, SITE, "next-token")
        found |= {key: row.tolist() for key, row in zip(segment.document_keys(), rows, strict=True)}
    return found


def test_exact_effects_follow_their_documents(measured: Path) -> None:
    before = carried(measured)
    drop_documents(measured, ["0/1", "2/3"])
    after = carried(measured)
    assert after.keys() == before.keys() - {"0/1", "2/3"}
    np.testing.assert_array_equal(list(after.values()), [before[key] for key in after])
    compact_segments(measured)
    compacted = carried(measured)
    assert list(compacted) == list(after)
    np.testing.assert_array_equal(list(compacted.values()), list(after.values()))
    drop_documents(measured, ["1/0"])
    assert list(carried(measured)) == [key for key in after if key != "1/0"]
    assert verify(measured) == []
    folders = sorted(found.name for found in (measured / "exact" / "segments").iterdir())
    rooms = [found.name for found in (measured / "exact").iterdir() if found.name.startswith("r")]
    assert (folders, len(rooms), rooms[0][:8]) == ([], 1, "r000003-")


def test_damaged_effects_of_a_revised_segment_are_found_and_dropped(measured: Path) -> None:
    drop_documents(measured, ["0/1"])
    shard = next((measured / "exact").glob("r000001-*/segments/*/sites/*/drop/next-token/c.0"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert {(fault.segment, fault.object) for fault in verify(measured)} == {(0, str(shard.relative_to(measured)))}
    said: list[str] = []
    assert repair(measured, tell=said.append) == []
    assert any("dropped the exact effects of segments 0;" in line for line in said)
    exact = open_scores(measured).exact_dense()
    assert exact is not None
    assert exact.missing == (0,)
    assert verify(measured) == []


def test_segments_are_not_joined_where_some_were_not_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "scores", measured=2)
    with pytest.raises(StoreError, match=r"exact effects of some of segments \[0, 1, 2\] only"):
        compact_segments(path)
    assert len(open_scores(path).segments) == NUM_SEGMENTS
    assert len(list((path / "segments").iterdir())) == NUM_SEGMENTS
    drop_documents(path, ["0/0", "2/0"])
    exact = open_scores(path).exact_dense()
    assert exact is not None
    assert exact.missing == (2,)


def certificate(path: Path, documents: tuple[str, ...], segments: tuple[int, ...]) -> Certificate:
    digests = {segment.index: segment.digest for segment in open_scores(path).segments}
    numbers: dict[str, Any] = dict.fromkeys(
        ("pearson", "spearman", "sign_agreement", "slope", "slope_low", "slope_high")
    )
    agreement: dict[str, Any] = {"site": SITE, "objective": "next-token", "scores": "pairs", "latents": "all"}
    made = Certificate(
        agreements=(Agreement(**agreement, samples=1, **numbers),),
        sampling={"seed": 0},
        documents=documents,
        segments={str(number): digests[number] for number in segments},
        differences={},
        value_deviation=0.0,
        samples={"document": documents},
    )
    write_certificate(path, made)
    return made


def test_a_certificate_stays_true_where_its_documents_do(measured: Path) -> None:
    made = certificate(measured, ("0/0", "2/2"), (0, 2))
    drop_documents(measured, ["0/1", "1/0"])
    compact_segments(measured)
    store = open_scores(measured)
    kept = read_certificate(store)
    assert kept is not None
    assert kept.is_current(store)
    assert kept == dataclasses.replace(made, segments={"0": read_effective(measured).records[0].digest})


def test_a_certificate_of_a_dropped_document_is_deleted(measured: Path) -> None:
    certificate(measured, ("0/0", "2/2"), (0, 2))
    drop_documents(measured, ["2/2"])
    assert read_certificate(open_scores(measured)) is None
    assert not (measured / "facts/certificate.json").exists()


def test_a_certificate_of_other_segments_is_left_as_it_is(measured: Path) -> None:
    made = dataclasses.replace(certificate(measured, ("0/0",), (0,)), segments={"0": "0" * 64})
    write_certificate(measured, made)
    compact_segments(measured)
    store = open_scores(measured)
    assert read_certificate(store) == made
    assert not made.is_current(store)
