"""What `gradsae verify` says of a store, and its exit status."""

import shutil
from pathlib import Path

import pytest

from tests.store.corpora import NEW, OLD, write_corpus
from tests.terminal import gradsae


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A complete store of one corpus."""
    return write_corpus(tmp_path / "store", OLD)


def test_a_store_that_lost_a_commit_record_is_said_to_be_incomplete_and_not_damaged(store: Path) -> None:
    (store / "commits" / "000001.json").unlink()
    answer = gradsae("verify", store)
    assert answer.status == 0
    incomplete = "no fault found; 3 of 4 segments committed: incomplete, run the same `gradsae extract` command again\n"
    assert answer.out == incomplete


@pytest.mark.parametrize("quick", [[], ["--quick"]])
@pytest.mark.parametrize("lost", ["dictionary/commit.json", "facts/gate.json", "facts/plan.json", "facts/plan-1.json"])
def test_a_store_that_lost_what_comes_before_every_segment_is_told_from_a_whole_one(
    store: Path, lost: str, quick: list[str]
) -> None:
    write_corpus(store, NEW, append=True)
    assert gradsae("verify", store, *quick).out == "no fault found; 7 of 7 segments committed\n"
    (store / lost).unlink()
    answer = gradsae("verify", store, *quick)
    verb = "`gradsae append` with the corpus of generation 1" if "-1" in lost else "the same `gradsae extract` command"
    assert answer.status == 1
    assert answer.out.splitlines()[-1].startswith(f"lacks {lost}: copy the store again, or run {verb} again")


def test_all_that_is_lacking_is_named(store: Path) -> None:
    shutil.rmtree(store / "facts")
    shutil.rmtree(store / "dictionary")
    assert "lacks dictionary/commit.json, facts/gate.json, facts/plan.json: copy" in gradsae("verify", store).out


def test_a_store_without_a_segment_yet_lacks_nothing(tmp_path: Path) -> None:
    store = write_corpus(tmp_path / "begun", OLD, [])
    shutil.rmtree(store / "facts")
    answer = gradsae("verify", store)
    assert (answer.status, answer.out.partition(":")[0]) == (0, "no fault found; 0 of 4 segments committed")


@pytest.mark.parametrize("lost", ["run.json", "generations/000001.json"])
def test_repair_is_not_advised_where_it_refuses(store: Path, lost: str) -> None:
    write_corpus(store, NEW, append=True)
    (store / lost).write_bytes((store / lost).read_bytes().replace(b"{", b"[", 1))
    answer = gradsae("verify", store)
    assert answer.status == 1
    assert f"1 fault. Nothing makes {lost} again: copy the store again" in answer.out
    assert "gradsae repair" not in answer.out
    assert gradsae("repair", store).status == 1
