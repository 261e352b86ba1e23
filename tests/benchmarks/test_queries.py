"""The benchmark of questions on a small store: every answer is that of two databases, and the page has every line."""

import json
from pathlib import Path

import pytest

from benchmarks.queries.__main__ import main
from benchmarks.queries.asked import Cost, drop_from_cache
from benchmarks.queries.corpus import draw_groups, write_store
from benchmarks.queries.databases import in_duckdb, in_polars
from benchmarks.queries.long_table import BY_LATENT, BY_TOKEN, export
from benchmarks.queries.oracle import assert_same, ours
from benchmarks.queries.questions import find_subjects, questions
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import open_scores, verify

SMALL = 200_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents in as many segments as a run would cut, with an index that keeps leading tokens."""
    folder = tmp_path_factory.mktemp("queries") / "2e05"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.growth.store_size.POOL_DOCUMENTS", 2)
        write_store(folder / "scores.gradsae", SMALL)
    build_index(folder / "scores.gradsae", leaders=25)
    return folder / "scores.gradsae"


def test_every_answer_is_that_of_duckdb_and_polars(store: Path, tmp_path: Path) -> None:
    opened, plain = open_scores(store), open_scores(store, use_index=False)
    assert opened.index is not None
    about = find_subjects(opened, "group=a", "group=b")
    export(opened, tmp_path / "tables", about)
    for order in (BY_TOKEN, BY_LATENT):
        for databases in (in_duckdb, in_polars):
            answers = databases(tmp_path / "tables" / order, about)
            assert set(answers) == set(questions(about)) - {"open"}
            for name, answer in answers.items():
                expected = answer()
                assert len(expected) >= 2
                assert_same(ours(opened, name, about), expected)
                assert_same(ours(plain, name, about), expected)


def test_a_wrong_answer_is_noticed() -> None:
    expected = [(4, 3.0), (1, 2.0), (7, 2.0)]
    assert_same([(4, 3.0), (1, 2.0), (9, 2.0)], expected)  # a tie at the end may be cut another way
    for wrong in ([(5, 3.0), (1, 2.0), (7, 2.0)], [(4, 3.0), (1, 2.1), (7, 2.0)], [(4, 3.0), (1, 2.0)]):
        with pytest.raises(AssertionError):
            assert_same(wrong, expected)


def test_groups_are_drawn_alike_and_of_equal_size() -> None:
    groups = draw_groups(10_000)
    assert groups == draw_groups(10_000)
    assert (groups.count("a"), groups.count("b")) == (1000, 1000)
    assert {"a", "b", "neither"} == set(draw_groups(12))


def test_a_store_that_was_dropped_from_the_cache_is_still_sound(store: Path) -> None:
    drop_from_cache(store)
    assert verify(store, quick=True) == []


def test_the_benchmark_writes_its_numbers_and_a_page(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = Cost(seconds=0.0125, later_seconds=0.0075, peak_bytes=2**28, raised_bytes=2**20)
    monkeypatch.setattr("benchmarks.queries.__main__.ask_apart", lambda *_, **__: cost)
    arguments = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--store", str(store)]
    main([*arguments, "--rounds", "1"])
    (page,) = (tmp_path / "out").glob("*-queries-scores.md")
    numbers = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(numbers["lines"]) == 9
    assert len(numbers["lines"][1]["databases"]) == 4
    assert page.read_text(encoding="utf-8") in capsys.readouterr().out
    assert f"| latents of a document | ≤ 20 | {' | '.join(['12.5 / 7.5'] * 4)} | 256 |" in page.read_text(
        encoding="utf-8"
    )
