"""A command that is advised is one that helps: that of the corpus whose segments are missing."""

from pathlib import Path

import numpy as np
import pytest

from gradsae_fast import open_scores, rank_latents
from gradsae_fast.errors import QueryError
from gradsae_fast.merge import merge
from gradsae_fast.remedy import commands_of
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.sidecars.exact import ExactWriter
from tests.store.corpora import LENGTHS, NEW, NEWER, OLD, write_corpus
from tests.store.synthetic import SITE
from tests.terminal import gradsae

EXTRACT = "the same `gradsae extract` command"
APPEND = "`gradsae append` with the corpus of generation 1"
FIRST = LENGTHS[OLD]  # segment of the appended corpus


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """A store of two corpora."""
    return write_corpus(write_corpus(tmp_path / "grown", OLD), NEW, append=True)


def lose(path: Path, number: int) -> None:
    (path / "commits" / f"{number:06d}.json").unlink()


def measure(path: Path, numbers: range) -> None:
    """Keep exact effects of these segments."""
    store = open_scores(path)
    writer = ExactWriter(path, store.segments, store.profile, 0.5, {SITE: np.array([4])})
    for number in numbers:
        segment = store.segments[number]
        writer.write(segment, {(SITE, "next-token"): np.zeros((segment.num_documents, 1))})


@pytest.mark.parametrize(
    ("lost", "advice"), [([0], EXTRACT), ([FIRST], APPEND), ([1, FIRST], f"{EXTRACT} and {APPEND}")]
)
def test_info_names_the_command_of_the_corpus_that_is_incomplete(grown: Path, lost: list[int], advice: str) -> None:
    for number in lost:
        lose(grown, number)
    assert f"committed; incomplete: run {advice} again\n" in gradsae("info", grown).out


def test_a_damaged_segment_of_an_appended_corpus_comes_back_by_append(grown: Path) -> None:
    shard = next((grown / "segments").glob(f"{FIRST:06d}-*/tokens/token_id/c.0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "says which command makes it again" in gradsae("verify", grown).out
    assert gradsae("repair", grown).out == f"dropped segments {FIRST}; to compute them again, run {APPEND}\n"
    write_corpus(grown, NEW, append=True)
    assert gradsae("repair", grown).out == "no damaged segment\n"


@pytest.mark.parametrize(
    ("measured", "advice"), [(range(FIRST), APPEND), (range(FIRST, 7), EXTRACT), (range(2), f"{EXTRACT} and {APPEND}")]
)
def test_missing_exact_effects_are_measured_by_the_command_of_their_corpus(
    grown: Path, measured: range, advice: str
) -> None:
    measure(grown, measured)
    answer = gradsae("rank", "latents", grown, "--exact-dense")
    assert f"; run {advice}, with --exact-dense 0.5: that measures what is missing\n" in answer.err


def test_effects_that_nothing_measures_any_more_are_not_promised(tmp_path: Path) -> None:
    write_corpus(tmp_path / "scores", OLD)
    drop_documents(tmp_path / "scores", [f"{OLD}-0-0"])
    with pytest.raises(QueryError, match="has none; its segments were revised, and cannot be measured any more"):
        rank_latents(open_scores(tmp_path / "scores"), exact_dense=True)


def test_what_was_merged_out_of_a_store_with_dropped_documents_comes_from_the_merge(
    grown: Path, tmp_path: Path
) -> None:
    drop_documents(grown, [f"{OLD}-0-0"])
    merge([grown, write_corpus(tmp_path / "newer", NEWER)], tmp_path / "merged")
    (first, *_) = open_scores(tmp_path / "merged").generations
    assert commands_of([first, first]) == "the same `gradsae merge` command"
