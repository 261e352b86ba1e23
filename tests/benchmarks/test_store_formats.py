"""The store beside other formats: each gives back what was written, and one that does not is not timed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.store_formats.__main__ import run
from benchmarks.store_formats.corpus import assert_same, read_scores, read_segments, write_store
from benchmarks.store_formats.formats import FORMATS, Format, check
from benchmarks.store_formats.page import page
from benchmarks.store_formats.parts import PARTS, bytes_by_part
from benchmarks.store_formats.ranking_error import compare
from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores
from tests.store.synthetic import make_segment

SEGMENTS = 3


def numbered(segment: SegmentScores) -> SegmentScores:
    """With the positions and keys of a real corpus: counted from 0 in every document, and nowhere twice."""
    document_N = segment.tokens.document
    position_N = np.arange(len(document_N)) - np.searchsorted(document_N, document_N)
    keys = [f"{segment.index}-{key}" for key in segment.documents.key]
    return replace(
        segment,
        tokens=replace(segment.tokens, position=position_N.astype(np.uint32)),
        documents=replace(segment.documents, key=keys),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    """Exact scores in three segments, masked and empty tokens among them."""
    path = tmp_path_factory.mktemp("formats") / "exact"
    with ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=SEGMENTS, precision_bits=23) as writer:
        for index in range(SEGMENTS):
            writer.write(numbered(make_segment(index, num_tokens=120, l0=12)))
    return open_scores(path)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("precision_bits", [3, 23])
def test_every_format_reads_back_what_was_written(
    store: ScoreStore, tmp_path: Path, form: Format, precision_bits: int
) -> None:
    scores = read_scores(store).rounded(precision_bits)
    form.write(tmp_path, scores)
    check(form, tmp_path, scores)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["latent", "activation", "projection"])
def test_a_format_that_changes_a_number_is_not_timed(
    store: ScoreStore, tmp_path: Path, form: Format, name: str
) -> None:
    scores = read_scores(store)
    changed = getattr(scores, name).copy()
    changed[7] += 1
    form.write(tmp_path, replace(scores, **{name: changed}))
    with pytest.raises(AssertionError, match=form.name.split(",")[0].split("(")[0]):
        check(form, tmp_path, scores)


@pytest.mark.parametrize("precision_bits", [7, 23])
@pytest.mark.parametrize("profile", ["compact", "portable"])
def test_a_store_written_again_holds_the_same_scores_at_its_precision(
    store: ScoreStore, tmp_path: Path, profile: str, precision_bits: int
) -> None:
    write_store(tmp_path / "again", store, read_segments(store), precision_bits=precision_bits, profile=profile)
    again = open_scores(tmp_path / "again")
    assert (again.profile, again.precision_bits) == (profile, precision_bits)
    assert_same(read_scores(again), read_scores(store).rounded(precision_bits))
    assert [segment.document_keys() for segment in again.segments] == [s.document_keys() for s in store.segments]


def test_the_parts_of_a_store_are_all_of_its_bytes(store: ScoreStore) -> None:
    parts = bytes_by_part(store)
    assert sum(parts.values()) == sum(
        path.stat().st_size for path in Path(str(store.path)).rglob("*") if path.is_file()
    )
    assert set(parts) == set(PARTS)
    assert min(parts.values()) > 0


def test_a_ranking_has_no_error_against_itself_and_a_bounded_one_against_a_rounded_store(
    store: ScoreStore, tmp_path: Path
) -> None:
    for error in compare(store, store):
        assert (error.overlap, error.kendall, error.spearman) == pytest.approx((1, 1, 1))
        assert (error.largest_of_sum, error.largest_of_absolute) == (0, 0)
    write_store(tmp_path / "rounded", store, read_segments(store), precision_bits=3, profile="compact")
    errors = compare(store, open_scores(tmp_path / "rounded"))
    assert errors[0].document is None
    # Two factors, each off by at most 2^-4, and float32 sums.
    assert 0 < max(error.largest_of_absolute for error in errors) < (1 + 2**-4) ** 2 - 1 + 1e-6


def test_a_report_tells_every_format_at_every_precision(store: ScoreStore) -> None:
    found = run(Path(str(store.path)), rounds=1, precisions=(7, 23))
    text = page(found, "today")
    for form in FORMATS:
        assert f"| {form.name} |" in text
    assert len(found["formats"]) == 2 * (len(FORMATS) + 2)
    assert all(row["bytes_per_nonzero"] > 0 for row in found["formats"])
    assert [row["documents"]["precision_bits"] for row in found["ranking"]] == [7]
    assert found["setting"]["nonzeros"] == read_scores(store).num_nonzeros
