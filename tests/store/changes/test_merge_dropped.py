"""What was dropped from one store does not come back out of another one, and a merge lies beside its sources."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gradsae_fast.errors import ConfigError, StoreError
from gradsae_fast.merge import merge
from gradsae_fast.store import open_scores
from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents
from tests.store.conftest import CopyOf
from tests.store.corpora import NEW, OLD, corpus_segment, open_corpus_writer, write_corpus

LAST = [f"0a1b-3-{slot}" for slot in range(4)]  # all documents of segment 3


def keys(path: Path) -> list[str]:
    return [key for segment in open_scores(path).segments for key in segment.document_keys()]


@pytest.fixture
def revised(copy_of: CopyOf) -> Path:
    """A whole store without the documents of its last segment."""
    path = copy_of(OLD, "revised")
    drop_documents(path, LAST)
    return path


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A part of the same run: the last segment, as it was computed elsewhere."""
    return write_corpus(tmp_path / "part", OLD, [3])


def refused(sources: Sequence[Path], out: Path, match: str) -> None:
    with pytest.raises(StoreError, match=match):
        merge(sources, out)
    assert not out.exists()


@pytest.mark.parametrize("revised_first", [True, False])
def test_dropped_documents_do_not_come_back_out_of_a_part_of_the_same_run(
    revised: Path, part: Path, tmp_path: Path, revised_first: bool
) -> None:
    sources = [revised, part] if revised_first else [part, revised]
    refused(sources, tmp_path / "all", "would bring dropped documents back; leave .*part out, as .*revised has all")
    merge([revised], tmp_path / "all")
    assert set(LAST).isdisjoint(keys(tmp_path / "all"))


def test_dropped_documents_do_not_come_back_into_what_was_merged_without_them(
    revised: Path, part: Path, tmp_path: Path
) -> None:
    merge([revised], tmp_path / "merged")
    refused([tmp_path / "merged", part], tmp_path / "all", "leave .*part out, as .*merged has all of the run")


def test_two_stores_of_one_run_without_different_documents_do_not_give_them_back_to_each_other(
    copy_of: CopyOf, revised: Path, tmp_path: Path
) -> None:
    other = copy_of(OLD, "other")
    drop_documents(other, [f"0a1b-{number}-{slot}" for number in range(3) for slot in range(4)])
    refused([revised, other], tmp_path / "all", "in both: .* leave .*other out, once .*revised lacks what was dropped")


def test_the_advice_to_leave_a_store_out_says_which_documents_that_store_alone_has(
    copy_of: CopyOf, revised: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    merge([copy_of(OLD, "old"), copy_of(NEW, "new")], grown)
    advice = "leave .*grown out, as .*revised has all.*; but it also has generation 1, which .*revised lacks: give"
    refused([revised, grown], tmp_path / "all", advice)
    drop_documents(grown, LAST)
    for sources in ([revised, grown], [grown, revised]):
        refused(sources, tmp_path / "all", r"in both: .* leave \S*revised out, once \S*grown lacks [^;]*$")


def test_a_compacted_store_is_not_merged_with_a_part_of_its_run(copy_of: CopyOf, part: Path, tmp_path: Path) -> None:
    compacted = copy_of(OLD, "compacted")
    compact_segments(compacted)
    refused([compacted, part], tmp_path / "all", "leave .*part out")


def test_a_document_of_another_corpus_with_a_dropped_key_is_copied_and_it_is_told(
    revised: Path, tmp_path: Path
) -> None:
    with open_corpus_writer(tmp_path / "other", NEW) as writer:
        segment = corpus_segment(NEW, 0)
        writer.write(replace(segment, documents=replace(segment.documents, key=["a", LAST[1], LAST[0], "b"])))
    told: list[str] = []
    merge([revised, tmp_path / "other"], tmp_path / "all", on_message=told.append)
    (line,) = [line for line in told if "dropped" in line]
    assert line.startswith(
        "2 documents have keys that were dropped from another of the stores ('0a1b-3-0', '0a1b-3-1')"
    )
    assert f"gradsae drop {tmp_path / 'all'}" in line


def test_a_merge_is_not_written_into_a_source_nor_around_one(copy_of: CopyOf, tmp_path: Path) -> None:
    source = copy_of(OLD, "a")
    before = sorted(source.iterdir())
    (tmp_path / "link").symlink_to(source)
    for out in (source / "merged", tmp_path / "link" / "deep" / "merged", tmp_path):
        with pytest.raises(ConfigError, match="lies inside the other"):
            merge([source], out)
    with pytest.raises(ConfigError, match="lies inside the other"):
        merge(["memory://beside/a"], "memory://beside/a/merged")
    assert sorted(source.iterdir()) == before
    assert merge([source], tmp_path / "a-merged").num_segments == 4


@pytest.mark.parametrize(
    "where", ["segments/000001*", "segments/000001*/documents", "segments/000001*/tokens/mask/c.0"]
)
def test_a_link_in_a_source_is_not_followed(copy_of: CopyOf, tmp_path: Path, where: str) -> None:
    source = copy_of(OLD, "a")
    (linked,) = source.glob(where)
    linked.rename(tmp_path / "moved")
    linked.symlink_to(tmp_path / "moved")
    with pytest.raises(StoreError, match="symbolic link"):
        merge([source], tmp_path / "all")
    with pytest.raises(StoreError, match=r"symbolic link|not a plain file"):
        drop_documents(source, ["0a1b-1-0"])
