"""A store grows by further corpora, and what it had stays as it was."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import rank_documents, rank_latents, rank_tokens
from gradsae_fast.errors import CorpusError, FormatError, IdentityError, StoreError
from gradsae_fast.ranking.index import build_index
from gradsae_fast.records import SegmentScores
from gradsae_fast.store import open_scores, repair, verify, writer
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.places.durable import document_bytes, read_document
from gradsae_fast.store.records import commits
from tests.store.conftest import CopyOf
from tests.store.corpora import (
    CORPORA,
    LENGTHS,
    NEW,
    NEWER,
    OLD,
    corpus_segment,
    identity_of,
    open_corpus_writer,
    write_corpus,
)

APPEND = """
import sys
from pathlib import Path
from tests.store.conftest import CopyOf
from tests.store.corpora import NEW, write_corpus
write_corpus(Path(sys.argv[1]), NEW, [int(sys.argv[2])], append=True, shared=True)
"""


def files(store: Path) -> dict[str, bytes]:
    """The bytes of every file but the lock."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name != "writer.lock"
    }


def digests(store: Path) -> list[str]:
    return [segment.digest for segment in open_scores(store).segments]


@pytest.fixture
def grown(copy_of: CopyOf, tmp_path: Path) -> Path:
    """A store of three generations."""
    path = copy_of(OLD, "grown")
    for corpus in (NEW, NEWER):
        write_corpus(path, corpus, append=True)
    return path


def test_appending_leaves_every_old_file_as_it_was_and_numbers_go_on(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "grown")
    before = files(path)
    write_corpus(path, NEW, append=True)
    assert files(path).items() >= before.items()
    store = open_scores(path)
    assert [segment.index for segment in store.segments] == list(range(7))
    assert [(one.number, one.first_segment, one.num_segments) for one in store.generations] == [(0, 0, 4), (1, 4, 3)]
    assert store.generations[1].identity == identity_of(NEW)
    assert store.num_segments == 7
    assert store.is_complete
    assert store.identity == identity_of(OLD)
    assert verify(path) == []


def test_a_store_that_grew_has_the_bytes_and_answers_of_one_made_of_all_corpora_at_once(
    copy_of: CopyOf, grown: Path
) -> None:
    whole = copy_of("whole")
    assert digests(grown) == digests(whole)
    for path in (grown, whole):
        build_index(path, leaders=3)
    left, right = open_scores(grown), open_scores(whole)
    assert left.index is not None
    assert rank_latents(left, k=None).to_pydict() == rank_latents(right, k=None).to_pydict()
    assert rank_documents(left, latent=3).to_pydict() == rank_documents(right, latent=3).to_pydict()
    assert rank_tokens(left, latent=3).to_pydict() == rank_tokens(right, latent=3).to_pydict()
    key = f"{NEWER}-1-0"
    assert rank_latents(left, document=key).to_pydict() == rank_latents(right, document=key).to_pydict()


def test_a_writer_of_a_further_generation_speaks_of_the_segments_of_its_own_plan(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "grown")
    write_corpus(path, NEW, [1], append=True)
    with open_corpus_writer(path, NEW, append=True) as writer:
        assert writer.committed == {1}
        assert not writer.is_committed(0)
        assert writer.is_committed(1)
        with pytest.raises(StoreError, match="segment 1 is committed already"):
            writer.write(corpus_segment(NEW, 1))
        with pytest.raises(StoreError, match="outside the plan of 3 segments"):
            writer.write(corpus_segment(NEW, 3))
        commit = writer.write(corpus_segment(NEW, 0))
    assert commit.facts["segment"] == 4
    assert not open_scores(path).is_complete


def test_the_same_append_resumes_and_another_one_adds_another_generation(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "grown")
    for numbers in ([0], [0, 2], None):
        write_corpus(path, NEW, numbers, append=True)
    assert len(open_scores(path).generations) == 2
    write_corpus(path, NEWER, append=True)
    assert [one.first_segment for one in open_scores(path).generations] == [0, 4, 7]


@pytest.mark.parametrize("order", [(OLD, NEW, NEWER), (NEWER, NEW, OLD), (NEW, OLD, NEWER)])
def test_an_incomplete_store_grows_and_its_generations_are_completed_in_any_order(
    copy_of: CopyOf, tmp_path: Path, order: tuple[str, ...]
) -> None:
    path = write_corpus(tmp_path / "grown", OLD, [2])
    write_corpus(path, NEW, [1], append=True)
    write_corpus(path, NEWER, [0], append=True)
    assert [segment.index for segment in open_scores(path).segments] == [2, 5, 7]
    for corpus in order:
        write_corpus(path, corpus, append=corpus != OLD)
    assert open_scores(path).is_complete
    assert digests(path) == digests(copy_of("whole"))


def test_a_generation_is_resumed_by_its_own_run_without_being_appended(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "grown")
    write_corpus(path, NEW, [0], append=True)
    write_corpus(path, NEW)
    assert open_scores(path).is_complete


def test_sidecars_of_generations_lie_side_by_side_and_the_gate_is_the_stores(grown: Path) -> None:
    store = open_scores(grown)
    plans = [store.facts(name) for name in ("plan", "plan-1", "plan-2")]
    assert [plan and plan["key"] for plan in plans] == list(CORPORA)
    assert store.facts("gate-1") is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"identity": {**identity_of(NEW), "model": {"name": "large", "dtype": "float32"}}}, "identity.model.name"),
        ({"identity": {**identity_of(NEW), "corpus": {"plan": NEW, "context_length": 32}}}, "context_length"),
        ({"precision_bits": 7}, "settings.precision_bits"),
        ({"profile": "portable"}, "settings.profile"),
    ],
)
def test_a_run_that_differs_in_more_than_its_documents_is_not_appended(
    copy_of: CopyOf, change: dict[str, Any], field: str
) -> None:
    path = copy_of(OLD, "scores")
    before = files(path)
    with pytest.raises(IdentityError, match="may differ in their documents only") as refusal:
        open_corpus_writer(path, NEW, append=True, **change)
    assert field in str(refusal.value)
    assert "plan" not in str(refusal.value), "what may differ is not held against it"
    assert files(path) == before


def test_extracting_another_corpus_into_a_store_points_to_append(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "scores")
    with pytest.raises(IdentityError, match="gradsae append"):
        open_corpus_writer(path, NEW)
    with pytest.raises(IdentityError) as refusal:
        open_corpus_writer(path, NEW, precision_bits=7)
    assert "gradsae append" not in str(refusal.value)


def test_appending_to_what_is_no_store_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        open_corpus_writer(tmp_path / "misspelt", NEW, append=True)
    assert not (tmp_path / "misspelt").exists()


def test_a_document_that_an_incomplete_store_did_not_show_yet_is_not_written_twice(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "grown", OLD, [0])
    with open_corpus_writer(path, NEW, append=True) as writer:
        writer.write(corpus_segment(NEW, 0))
        with pytest.raises(CorpusError, match=r"4 of these keys already: '0a1b-0-0' \(segment 0\)"):
            writer.write(corpus_segment(OLD, 0, 1))
    with open_corpus_writer(path, OLD) as writer, pytest.raises(CorpusError, match=r"'2c3d-0-0' \(segment 4\)"):
        writer.write(corpus_segment(NEW, 0, 1))
    assert [segment.index for segment in open_scores(path).segments] == [0, 4]


def test_a_damaged_record_of_a_generation_is_found_and_not_repaired_away(grown: Path) -> None:
    record = grown / "generations" / "000001.json"
    data = record.read_bytes()
    record.write_bytes(data.replace(b"2c3d", b"2c3e", 1))
    faults = verify(grown)
    assert [(fault.segment, fault.object) for fault in faults] == [(None, "generations/000001.json")]
    with pytest.raises(StoreError, match="restore it from a copy"):
        repair(grown)
    with pytest.raises(StoreError, match=r"000001\.json is damaged"):
        open_scores(grown)
    record.write_bytes(data)
    assert verify(grown) == []


@pytest.mark.parametrize(("number", "what"), [(1, r"000001\.json is missing"), (2, "segment 7 is damaged")])
def test_a_lost_record_of_a_generation_is_noticed(grown: Path, number: int, what: str) -> None:
    (grown / "generations" / f"{number:06d}.json").unlink()
    with pytest.raises(StoreError, match=what):
        open_scores(grown)
    assert [fault.object for fault in verify(grown)] == ["generations"]
    for corpus in (NEWER, "9d9d"):
        with pytest.raises(StoreError, match=what):
            open_corpus_writer(grown, corpus, append=True, num_segments=2)


def test_a_record_of_another_store_is_refused(grown: Path) -> None:
    folder = grown / "generations"
    (folder / "000001.json").write_bytes((folder / "000002.json").read_bytes())
    with pytest.raises(StoreError, match=r"is of generation 2 from segment 7 on; expected generation 1"):
        open_scores(grown)


def test_a_newer_format_is_refused(grown: Path) -> None:
    for name in ("run.json", "generations/000001.json"):
        path = grown / name
        kept = path.read_bytes()
        path.write_bytes(document_bytes({**read_document(path), "format_version": 3}))
        with pytest.raises(FormatError, match="format version 3; this release reads version 1 and 2"):
            open_scores(grown)
        path.write_bytes(kept)


def test_writers_that_append_one_corpus_at_the_same_time_make_one_generation(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "grown")
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(path), str(number)], cwd=Path(__file__).parents[3])
        for number in range(LENGTHS[NEW])
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    store = open_scores(path)
    assert len(store.generations) == 2
    assert store.is_complete
    assert verify(path) == []


def with_keys(corpus: str, number: int, *keys: str) -> SegmentScores:
    """A segment of a corpus whose first documents have these keys."""
    segment = corpus_segment(corpus, number)
    others = segment.documents.key[len(keys) :]
    return replace(segment, documents=replace(segment.documents, key=[*keys, *others]))


def test_a_key_that_another_corpus_has_brought_meanwhile_is_refused(copy_of: CopyOf) -> None:
    path = copy_of(OLD, "grown")
    with (
        open_corpus_writer(path, NEW, append=True, shared=True) as first,
        open_corpus_writer(path, NEWER, append=True, shared=True) as second,
    ):
        first.write(with_keys(NEW, 1, "one"))
        second.write(with_keys(NEWER, 0, "two"))
        with pytest.raises(CorpusError, match=r"1 of these keys already: 'two' \(segment 7\)"):
            first.write(with_keys(NEW, 0, "two"))
        with pytest.raises(CorpusError, match=r"1 of these keys already: 'one' \(segment 5\)"):
            second.write(with_keys(NEWER, 1, "one"))
    assert [segment.index for segment in open_scores(path).segments] == [0, 1, 2, 3, 5, 7]


def test_a_key_that_two_corpora_bring_at_the_same_moment_is_told(
    copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of(OLD, "grown")
    with (
        open_corpus_writer(path, NEW, append=True, shared=True) as first,
        open_corpus_writer(path, NEWER, append=True, shared=True) as second,
    ):

        def publish_second(*args: Any) -> commits.CommitRecord:
            monkeypatch.setattr(writer, "publish", commits.publish)
            second.write(with_keys(NEWER, 0, "one"))
            return commits.publish(*args)

        monkeypatch.setattr(writer, "publish", publish_second)
        with pytest.raises(CorpusError, match=r"'one' \(segment 7\).* Segment 4.* `gradsae drop` takes out both"):
            first.write(with_keys(NEW, 0, "one"))
    assert drop_documents(path, ["one"]).num_documents == 2
