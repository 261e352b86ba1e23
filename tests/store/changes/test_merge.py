"""Stores made into one: the bytes are those of one store made at once, the sources stay as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast import rank_latents
from gradsae_fast.errors import ConfigError, CorpusError, FormatError, IdentityError, StoreError
from gradsae_fast.merge import merge
from gradsae_fast.store import open_scores, repair, verify
from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.places.durable import document_bytes, read_document
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.records.facts import write_facts
from gradsae_fast.store.sidecars.described import publish_described
from gradsae_fast.store.sidecars.exact import ExactWriter
from tests.store.conftest import CopyOf
from tests.store.corpora import (
    NEW,
    NEWER,
    OLD,
    corpus_segment,
    identity_of,
    open_corpus_writer,
    write_at_once,
    write_corpus,
)
from tests.store.records.test_generations import digests, files
from tests.store.sidecars.test_described import make_described
from tests.store.synthetic import SITE


def keys(path: Path) -> list[str]:
    return [key for segment in open_scores(path).segments for key in segment.document_keys()]


def measure(path: Path, latents: list[int], share: float = 0.2, value: float = 1.0) -> None:
    """Keep exact effects of some latents in every segment: the number of the document, times `value`."""
    store = open_scores(path)
    with locked(path):
        writer = ExactWriter(path, store.segments, store.profile, share, {SITE: np.array(latents)})
        for segment in store.segments:
            drop_MK = value * np.arange(segment.num_documents)[:, None] + np.zeros(len(latents))
            writer.write(segment, {(SITE, "next-token"): drop_MK})


def test_stores_of_different_corpora_become_generations_with_the_bytes_of_one_store(
    copy_of: CopyOf, tmp_path: Path
) -> None:
    sources = [copy_of(corpus, corpus) for corpus in (OLD, NEW, NEWER)]
    before = [files(source) for source in sources]
    report = merge(sources, tmp_path / "all")
    assert (report.num_generations, report.num_segments, report.num_skipped, report.num_missing) == (3, 9, 0, 0)
    assert digests(tmp_path / "all") == digests(copy_of("whole"))
    assert verify(tmp_path / "all") == []
    assert [files(source) for source in sources] == before
    store, whole = open_scores(tmp_path / "all"), open_scores(tmp_path / "whole")
    assert store.index is not None
    assert rank_latents(store, k=None).to_pydict() == rank_latents(whole, k=None).to_pydict()
    assert store.token_strings() == whole.token_strings()
    assert [one.run["config"]["corpus"]["path"] for one in store.generations] == [
        "0a1b.jsonl",
        "2c3d.jsonl",
        "4e5f.jsonl",
    ]


def test_parts_of_one_run_are_united_by_number(copy_of: CopyOf, tmp_path: Path) -> None:
    parts = [write_corpus(tmp_path / name, OLD, numbers) for name, numbers in (("a", [0, 2]), ("b", [2, 3]))]
    report = merge(parts, tmp_path / "all")
    assert (report.num_generations, report.num_segments, report.num_missing) == (1, 3, 1)
    assert [segment.index for segment in open_scores(tmp_path / "all").segments] == [0, 2, 3]
    write_corpus(tmp_path / "all", OLD)
    assert digests(tmp_path / "all") == digests(copy_of(OLD, "whole"))


def test_a_merge_goes_on_with_what_its_sources_have_since(tmp_path: Path) -> None:
    part = write_corpus(tmp_path / "part", OLD, [1])
    assert merge([part], tmp_path / "all").num_segments == 1
    write_corpus(part, OLD)
    report = merge([part], tmp_path / "all")
    assert (report.num_segments, report.num_skipped, report.num_missing) == (3, 1, 0)
    store = open_scores(tmp_path / "all")
    assert store.is_complete
    assert store.index is not None
    assert merge([part], tmp_path / "all").num_skipped == 4


def test_stores_that_grew_are_merged_generation_by_generation(copy_of: CopyOf, tmp_path: Path) -> None:
    first = write_corpus(copy_of(OLD, "first"), NEW, [0], append=True)
    second = write_corpus(write_corpus(tmp_path / "second", NEW, [0, 1, 2]), NEWER, append=True)
    merge([first, second], tmp_path / "all")
    store = open_scores(tmp_path / "all")
    assert [one.identity["corpus"]["plan"] for one in store.generations] == [OLD, NEW, NEWER]
    assert digests(tmp_path / "all") == digests(copy_of("whole"))
    write_corpus(tmp_path / "all", NEW, append=True)  # nothing is left to write, and it is found


def test_an_incomplete_merged_store_is_resumed_by_append(copy_of: CopyOf, tmp_path: Path) -> None:
    sources = [write_corpus(tmp_path / "a", OLD, [1]), write_corpus(tmp_path / "b", NEW, [2])]
    merge(sources, tmp_path / "all")
    write_corpus(tmp_path / "all", NEW, append=True)
    write_corpus(tmp_path / "all", OLD)
    assert digests(tmp_path / "all") == digests(write_at_once(tmp_path / "whole", (OLD, NEW)))


def test_one_segment_with_different_bytes_is_refused_before_anything_is_written(
    copy_of: CopyOf, tmp_path: Path
) -> None:
    first = copy_of(OLD, "a")
    with open_corpus_writer(tmp_path / "b", OLD) as writer:
        writer.write(corpus_segment(NEW, 2))
    with pytest.raises(StoreError, match=r"segment 2 of .*a and segment 2 of .*b have different bytes"):
        merge([first, tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_documents_of_one_key_in_two_corpora_are_refused_before_anything_is_written(
    copy_of: CopyOf, tmp_path: Path
) -> None:
    first = copy_of(OLD, "a")
    with open_corpus_writer(tmp_path / "b", NEW) as writer:
        writer.write(corpus_segment(OLD, 1))
    with pytest.raises(CorpusError, match=r"4 keys .* '0a1b-1-\d' in .*a, segment 1 and .*b, segment 1"):
        merge([first, tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {**identity_of(NEW), "model": {"name": "large", "dtype": "float32"}}},
        {"precision_bits": 7},
        {"aggregates_include_special": True},
    ],
)
def test_runs_that_differ_in_more_than_their_documents_are_refused(
    copy_of: CopyOf, tmp_path: Path, change: dict[str, Any]
) -> None:
    first = copy_of(OLD, "a")
    second = write_corpus(tmp_path / "b", NEW, [0], **change)
    with pytest.raises(IdentityError, match="may differ in their documents only"):
        merge([first, second], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_another_dictionary_is_refused(copy_of: CopyOf, tmp_path: Path) -> None:
    first = copy_of(OLD, "a")
    with open_corpus_writer(tmp_path / "b", NEW) as writer:
        writer.write_dictionary(["other"], {})
        writer.write(corpus_segment(NEW, 0))
    with pytest.raises(IdentityError, match="another dictionary"):
        merge([first, tmp_path / "b"], tmp_path / "all")


def test_a_source_is_never_the_target(copy_of: CopyOf, tmp_path: Path) -> None:
    first = copy_of(OLD, "a")
    (tmp_path / "link").symlink_to(first)
    for out in (first, tmp_path / "link"):
        with pytest.raises(ConfigError, match="one of the stores to merge"):
            merge([first], out)
    with pytest.raises(ConfigError, match="no store to merge"):
        merge([], tmp_path / "all")


def test_a_folder_that_is_another_store_or_no_store_is_not_merged_into(copy_of: CopyOf, tmp_path: Path) -> None:
    first = copy_of(OLD, "a")
    other = copy_of(NEW, "other")
    with pytest.raises(IdentityError):
        merge([first], other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(StoreError, match="not empty and not a store"):
        merge([first], tmp_path / "full")


def test_a_damaged_source_is_not_copied(copy_of: CopyOf, tmp_path: Path) -> None:
    first = copy_of(OLD, "a")
    damaged = next((first / "segments").glob("000002-*/tokens/mask/c.0"))
    data = bytearray(damaged.read_bytes())
    data[3] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(StoreError, match=r"mask/c\.0 is not what was committed"):
        merge([first], tmp_path / "all")
    assert [segment.index for segment in open_scores(tmp_path / "all").segments] == [0, 1]
    assert verify(tmp_path / "all") == []
    damaged.unlink()
    with pytest.raises(StoreError, match=r"mask/c\.0 is missing"):
        merge([first], tmp_path / "all")


def test_exact_effects_follow_their_segments_to_new_numbers(copy_of: CopyOf, tmp_path: Path) -> None:
    sources = [copy_of(corpus, corpus) for corpus in (OLD, NEW)]
    for value, source in enumerate(sources, 1):
        measure(source, [2, 5], value=value)
    merge(sources, tmp_path / "all")
    exact = open_scores(tmp_path / "all").exact_dense()
    assert exact is not None
    assert exact.missing == ()
    assert exact.latents[SITE].tolist() == [2, 5]
    for index in range(7):
        assert exact.drops(index, SITE, "next-token")[:, 1].tolist() == [(1 + (index > 3)) * m for m in range(4)]
    assert verify(tmp_path / "all") == []
    assert merge(sources, tmp_path / "all").num_bytes == 0


@pytest.mark.parametrize(("latents", "share"), [([2, 6], 0.2), ([2, 5], 0.1)])
def test_exact_effects_of_other_dense_latents_are_left_out_and_it_is_said(
    copy_of: CopyOf, tmp_path: Path, latents: list[int], share: float
) -> None:
    sources = [copy_of(corpus, corpus) for corpus in (OLD, NEW)]
    measure(sources[0], [2, 5])
    measure(sources[1], latents, share)
    told: list[str] = []
    merge(sources, tmp_path / "all", on_message=told.append)
    exact = open_scores(tmp_path / "all").exact_dense()
    assert exact is not None
    assert exact.missing == (4, 5, 6)
    assert any("exact effects of 3 segments" in line for line in told)


def test_what_decoder_rows_say_is_carried_over(copy_of: CopyOf, tmp_path: Path) -> None:
    first, second = copy_of(OLD, "a"), copy_of(NEW, "b")
    publish_described(second, {SITE: make_described(latents=24)}, "compact")
    merge([first, second], tmp_path / "all")
    found, expected = (open_scores(path).described(SITE) for path in (tmp_path / "all", second))
    assert found is not None
    assert expected is not None
    assert found.promoted_CT.tolist() == expected.promoted_CT.tolist()


def test_each_generation_keeps_the_gate_that_it_was_scored_with(copy_of: CopyOf, tmp_path: Path) -> None:
    sources = [copy_of(corpus, corpus) for corpus in (OLD, NEW, NEWER)]
    own = {"median_norms": {SITE: 2.5}, "checks": []}
    write_facts(sources[1], "gate", own)
    told: list[str] = []
    merge(sources, tmp_path / "all", on_message=told.append)
    store = open_scores(tmp_path / "all")
    assert store.facts("gate") == {"median_norms": {SITE: 1.5}, "checks": []}
    assert store.facts("gate-1") == own
    assert store.facts("gate-2") is None
    (line,) = (line for line in told if "generation 1 has median norms of its own" in line)
    assert "Scores compare all the same" in line
    assert line.endswith("""store.facts('gate-1')["median_norms"]""")
    assert (store.facts("gate-1") or {})["median_norms"] == {SITE: 2.5}
    merge([tmp_path / "all"], tmp_path / "again")
    assert open_scores(tmp_path / "again").facts("gate-1") == own


def test_a_certificate_stays_with_segments_that_keep_their_numbers(copy_of: CopyOf, tmp_path: Path) -> None:
    sources = [copy_of(corpus, corpus) for corpus in (OLD, NEW)]
    certificate = {"segments": {"1": open_scores(sources[0]).segments[1].digest}}
    write_facts(sources[0], "certificate", certificate)
    told: list[str] = []
    merge(sources, tmp_path / "all", on_message=told.append)
    merge(sources[::-1], tmp_path / "reversed", on_message=told.append)
    assert open_scores(tmp_path / "all").facts("certificate") == certificate
    assert open_scores(tmp_path / "reversed").facts("certificate") is None
    assert [line for line in told if "gradsae certify" in line]


def test_a_store_of_version_1_is_not_merged_into(copy_of: CopyOf, tmp_path: Path) -> None:
    first, old = copy_of(OLD, "a"), write_corpus(tmp_path / "old", OLD, [0])
    (old / "run.json").write_bytes(document_bytes({**read_document(old / "run.json"), "format_version": 1}))
    with pytest.raises(FormatError, match="format version 1"):
        merge([first], old)


def test_merging_reads_from_sources_without_write_access(copy_of: CopyOf, tmp_path: Path) -> None:
    source = copy_of(OLD, "a")
    (source / "writer.lock").unlink()
    for folder in [source, *(path for path in source.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    try:
        merge([source], tmp_path / "all")
    finally:
        for folder in [source, *(path for path in source.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
    assert not (source / "writer.lock").exists()
    assert digests(tmp_path / "all") == digests(source)


def test_a_revised_store_is_merged_as_readers_see_it_and_never_resumed(copy_of: CopyOf, tmp_path: Path) -> None:
    revised, other = copy_of(OLD), copy_of(NEW)
    measure(revised, [2, 5])
    drop_documents(revised, ["0a1b-1-2", *(f"0a1b-3-{slot}" for slot in range(4))])
    compact_segments(revised, tokens_per_segment=80)
    merge([revised, other], tmp_path / "all")
    store, source = open_scores(tmp_path / "all"), open_scores(revised)
    assert [one.is_closed for one in store.generations] == [True, False]
    assert [one.num_segments for one in store.generations] == [len(source.segments), 3]
    assert store.is_complete
    assert keys(tmp_path / "all") == keys(revised) + keys(other)
    assert "0a1b-1-2" not in keys(tmp_path / "all")
    merge([revised], tmp_path / "alone")
    left, right = (rank_latents(open_scores(path), k=None) for path in (tmp_path / "alone", revised))
    assert left.to_pydict() == right.to_pydict()
    exact = store.exact_dense()
    assert exact is not None
    assert exact.missing == tuple(store.generations[1].segments)
    assert verify(tmp_path / "all") == []
    with pytest.raises(StoreError, match="it cannot be resumed, and is complete as it is"):
        open_corpus_writer(tmp_path / "all", OLD)
    write_corpus(tmp_path / "all", NEWER, append=True)
    assert open_scores(tmp_path / "all").is_complete


def test_an_incomplete_store_that_was_revised_is_refused(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "a", OLD, [0, 1])
    drop_documents(path, ["0a1b-1-2"])
    with pytest.raises(StoreError, match="lacks 2 of its segments"):
        merge([path], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_damaged_segment_that_no_run_computes_is_copied_again_by_the_same_merge(
    copy_of: CopyOf, tmp_path: Path
) -> None:
    revised = copy_of(OLD)
    drop_documents(revised, ["0a1b-1-2"])
    merge([revised], tmp_path / "all")
    before = digests(tmp_path / "all")
    next((tmp_path / "all" / "segments").glob("000001-*/tokens/mask/c.0")).unlink()
    told: list[str] = []
    assert repair(tmp_path / "all", tell=told.append) == [1]
    assert any("the same `gradsae merge` command copies them again" in line for line in told)
    assert merge([revised], tmp_path / "all").num_segments == 1
    assert digests(tmp_path / "all") == before


def test_a_merged_store_that_was_revised_is_not_merged_into_again(copy_of: CopyOf, tmp_path: Path) -> None:
    source = copy_of(OLD)
    merge([source], tmp_path / "all")
    drop_documents(tmp_path / "all", ["0a1b-1-2"])
    with pytest.raises(StoreError, match="a merge cannot go on with it"):
        merge([source], tmp_path / "all")
    assert "0a1b-1-2" not in keys(tmp_path / "all")


def test_a_disk_and_a_bucket_are_merged_into_a_bucket_and_back(copy_of: CopyOf, tmp_path: Path) -> None:
    sources = [copy_of(corpus) for corpus in (OLD, NEW)]
    measure(sources[0], [2, 5])
    bucket = f"memory://merging/{tmp_path.name}"
    merge(sources[:1], f"{bucket}/old")
    report = merge([f"{bucket}/old", sources[1]], f"{bucket}/all")
    assert report.num_segments == 7
    merge([f"{bucket}/all"], tmp_path / "back")
    merge(sources, tmp_path / "directly")
    assert digests(tmp_path / "back") == digests(tmp_path / "directly")
    assert verify(tmp_path / "back") == []
    exact = open_scores(tmp_path / "back").exact_dense()
    assert exact is not None
    assert exact.missing == (4, 5, 6)
