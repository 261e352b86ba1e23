"""What is written comes back: whole, by token, by latent, and summed."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy.sparse import csr_array
from zarr.errors import ZarrUserWarning

from gradsae_fast.errors import FormatError, QueryError, StoreError
from gradsae_fast.records import SegmentScores, SparseScores, empty_scores
from gradsae_fast.store import ScoreStore, ScoreWriter, StoredSite, open_scores
from gradsae_fast.store.format.codecs import round_significand
from gradsae_fast.store.format.layout import DOCUMENTS, TOKENS, Array
from gradsae_fast.store.places.durable import document_bytes, read_document
from tests.store.synthetic import SITE, dense, make_segment

OpenWriter = Callable[..., ScoreWriter]
TWO: dict[str, Any] = {"sites": ("model.layers.3", "model.layers.12"), "objectives": ("next-token", "logit-diff:a/B")}


def stored(open_writer: OpenWriter, segment: SegmentScores, **settings: Any) -> ScoreStore:
    with open_writer(num_segments=segment.index + 1, **settings) as writer:
        writer.write(segment)
    return open_scores(writer.path)


def assert_same_scores(got: SparseScores, expected: SparseScores, precision_bits: int) -> None:
    np.testing.assert_array_equal(got.indptr, expected.indptr)
    np.testing.assert_array_equal(got.indices, expected.indices)
    np.testing.assert_array_equal(got.activation, round_significand(expected.activation, precision_bits))
    assert list(got.projections) == list(expected.projections)
    for name, values in expected.projections.items():
        np.testing.assert_array_equal(got.projections[name], round_significand(values, precision_bits))
    assert got.num_latents == expected.num_latents
    assert got.indptr.dtype == np.int64
    assert got.activation.dtype == np.float32


SHAPES: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "two sites, two objectives": TWO,
    "signed": {"signed": True},
    "no token": {"num_tokens": 0, "num_documents": 2},
    "no document": {"num_tokens": 0, "num_documents": 0},
    "nothing active": {"l0": 0},
    "every latent active": {"l0": 1000, "num_latents": 16},
    "one document": {"num_documents": 1},
    "65,536 latents": {"num_latents": 65_536, "num_tokens": 5},
    "65,537 latents": {"num_latents": 65_537, "num_tokens": 5},
}


@pytest.mark.parametrize(("profile", "precision_bits"), [("compact", 7), ("portable", 23)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_segment_comes_back(open_writer: OpenWriter, shape: str, profile: str, precision_bits: int) -> None:
    segment = make_segment(**SHAPES[shape])
    store = stored(open_writer, segment, profile=profile, precision_bits=precision_bits)
    (got,) = store.segments
    for spec in TOKENS:
        np.testing.assert_array_equal(getattr(got.tokens(), spec.name), getattr(segment.tokens, spec.name))
        assert got.token_column(spec.name).dtype == spec.dtype
    documents = got.documents()
    for field in fields(documents):
        if field.name != "objectives":
            np.testing.assert_equal(getattr(documents, field.name), getattr(segment.documents, field.name))
    for name, values in segment.documents.objectives.items():
        np.testing.assert_array_equal(documents.objectives[name], values)
    assert store.sites == list(segment.sites)
    for site, scores in segment.sites.items():
        assert_same_scores(got.site(site).by_token(), scores, precision_bits)
        assert_sums_match(got.site(site), segment, counted=segment.tokens.mask == 0)


def assert_sums_match(site: StoredSite, segment: SegmentScores, counted: Array) -> None:
    """Hold every stored sum to dense float64 sums of what a reader reads."""
    scores = site.by_token()
    sums, stats = site.document_sums(), site.latent_stats()
    num_documents = len(segment.documents.key)
    values = {"activation": scores.activation}
    values |= {name: scores.activation * projection for name, projection in scores.projections.items()}
    of_document = np.zeros((num_documents, len(counted)))
    of_document[segment.tokens.document, np.arange(len(counted))] = 1
    of_document *= counted
    rows = np.repeat(np.arange(num_documents), np.diff(sums.indptr))

    def assert_column(name: str, expected_document: Array, expected_latent: Array | None) -> None:
        got = np.zeros((num_documents, scores.num_latents))
        got[rows, sums.indices] = sums.columns.get(name, 0)
        if name in sums.columns:
            np.testing.assert_allclose(got, expected_document, rtol=1e-6, atol=1e-9)
        if expected_latent is not None:
            np.testing.assert_allclose(stats.columns[name], expected_latent, rtol=1e-12, atol=1e-12)

    for name, flat in values.items():
        matrix = dense(scores, flat.astype(np.float64))
        total, absolute = of_document @ matrix, of_document @ np.abs(matrix)
        if name == "activation":
            active = dense(scores, np.ones(len(flat)))
            assert_column("count", of_document @ active, counted @ active)
            assert_column("sum_activation", total, counted @ matrix)
        else:
            assert_column(f"sum_influence/{name}", total, counted @ matrix)
            assert_column(f"sum_positive/{name}", of_document @ matrix.clip(min=0), None)
            assert_column(f"sum_absolute/{name}", absolute, counted @ np.abs(matrix))
            largest = np.abs(matrix[counted]).max(axis=0, initial=0)
            np.testing.assert_array_equal(stats.columns[f"max_absolute/{name}"], largest)


def test_sums_count_masked_tokens_where_the_run_says_so(open_writer: OpenWriter) -> None:
    segment = make_segment()
    assert segment.tokens.mask.any()
    store = stored(open_writer, segment, aggregates_include_special=True)
    assert store.aggregates_include_special
    assert_sums_match(store.segments[0].site(SITE), segment, counted=np.ones(40, bool))
    assert store.segments[0].counted_tokens().tolist() == segment.documents.num_tokens.tolist()


def test_counted_tokens_are_the_unmasked_ones(open_writer: OpenWriter) -> None:
    segment = make_segment()
    expected = np.bincount(segment.tokens.document[segment.tokens.mask == 0], minlength=4)
    assert stored(open_writer, segment).segments[0].counted_tokens().tolist() == expected.tolist()


def test_by_latent_is_the_column_of_by_token(open_writer: OpenWriter) -> None:
    segment = make_segment(signed=True, **TWO)
    site = stored(open_writer, segment).segments[0].site("model.layers.12")
    scores = site.by_token()
    for latent in range(64):
        tokens, activation, projections = site.by_latent(latent)
        assert tokens.dtype == np.int64
        for values, got in [(scores.activation, activation), *zip(scores.projections.values(), projections.values())]:  # noqa: B905
            column = csr_array((values, scores.indices, scores.indptr), shape=(40, 64)).tocsc()
            edges = slice(column.indptr[latent], column.indptr[latent + 1])
            np.testing.assert_array_equal(tokens, column.indices[edges])
            np.testing.assert_array_equal(got, column.data[edges])


def test_a_range_of_tokens_is_the_slice_of_the_segment(open_writer: OpenWriter) -> None:
    segment = make_segment()
    site = stored(open_writer, segment, precision_bits=23).segments[0].site(SITE)
    scores = segment.sites[SITE]
    for start, stop in [(0, 0), (0, 1), (13, 29), (39, 40), (40, 40)]:
        first, last = scores.indptr[start], scores.indptr[stop]
        part = SparseScores(
            indptr=scores.indptr[start : stop + 1] - first,
            indices=scores.indices[first:last],
            activation=scores.activation[first:last],
            projections={name: values[first:last] for name, values in scores.projections.items()},
            num_latents=64,
        )
        assert_same_scores(site.by_token(start, stop), part, 23)


def test_nan_and_infinity_in_metadata_text_and_scores_come_back(open_writer: OpenWriter) -> None:
    segment = make_segment(num_documents=3)
    scores = segment.sites[SITE]
    activation = scores.activation.copy()
    activation[:3] = [np.nan, np.inf, -np.inf]
    documents = replace(
        segment.documents,
        text=["nul \x00 and lone \udce9", "", "x" * 1_000_000],
        metadata={"score": [float("nan"), float("inf"), None], "__odd/../Name": ["\ud800", "ß", {"ü": []}]},
    )
    odd = replace(segment, documents=documents, sites={SITE: replace(scores, activation=activation)})
    (got,) = stored(open_writer, odd).segments
    np.testing.assert_equal(got.metadata(), documents.metadata)
    assert got.documents().text == documents.text
    np.testing.assert_array_equal(got.site(SITE).by_token().activation[:3], activation[:3])


def test_zarr_python_opens_a_segment_as_one_group_with_the_declared_types(open_writer: OpenWriter) -> None:
    store = stored(open_writer, make_segment(**TWO), profile="portable")
    folder = store.path / store.segments[0].commit["writer"]["folder"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZarrUserWarning)  # portable: codecs of the specification only
        group = zarr.open_group(folder, mode="r")
        arrays = dict(group.members(max_depth=None))
    assert group.attrs.asdict() == {"format": "gradsae.segment", "format_version": 1, "segment": 0}
    assert arrays["sites/model.layers.3"].attrs.asdict() == {"site": "model.layers.3", "num_latents": 64}
    for table, specs in (("tokens", TOKENS), ("documents", DOCUMENTS)):
        for spec in specs:
            if "{" not in spec.name:
                array = arrays[f"{table}/{spec.name}"]
                assert isinstance(array, zarr.Array)
                assert array.dtype == spec.dtype
                assert array.metadata.dimension_names == spec.dims  # type: ignore[union-attr]
    indices = arrays["sites/model.layers.3/by_token/indices"]
    assert isinstance(indices, zarr.Array)
    np.testing.assert_array_equal(indices[:], store.segments[0].site("model.layers.3").by_token().indices)


@pytest.mark.parametrize(("num_latents", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_largest_latent_id_survives_at_the_border_of_its_type(
    open_writer: OpenWriter, num_latents: int, dtype: str
) -> None:
    last = num_latents - 1
    segment = make_segment(num_tokens=1, num_documents=1)
    scores = replace(
        empty_scores(1, num_latents, ("next-token",)),
        indptr=np.array([0, 2]),
        indices=np.array([0, last]),
        activation=np.ones(2, np.float32),
        projections={"next-token": np.ones(2, np.float32)},
    )
    tokens = replace(segment.tokens, mask=np.zeros(1, np.uint8))
    store = stored(open_writer, replace(segment, tokens=tokens, sites={SITE: scores}))
    site = store.segments[0].site(SITE)
    assert site.by_token().indices.tolist() == site.document_sums().indices.tolist() == [0, last]
    assert site.by_latent(last)[0].tolist() == [0]
    folder = store.path / store.segments[0].commit["writer"]["folder"]
    assert f'"data_type": "{dtype}"' in (folder / f"sites/{SITE}/by_token/indices/zarr.json").read_text()


def test_a_store_says_what_it_holds(finished: Path) -> None:
    store = open_scores(finished)
    assert (store.run, store.num_segments, store.is_complete) == ({"host": "here"}, 2, True)
    assert (store.num_tokens, store.num_documents) == (80, 8)
    assert (store.sites, store.objectives, store.num_latents(SITE)) == ([SITE], ["next-token"], 64)
    assert (store.precision_bits, store.profile, store.aggregates_include_special) == (10, "compact", False)
    assert [segment.index for segment in store.segments] == [0, 1]
    assert store.segments[1].document_keys() == [f"address-{m}" for m in range(4)]
    assert store.segments[1].commit["counts"]["nnz"] == {SITE: len(make_segment(1).sites[SITE].indices)}
    assert store.token_strings() == ["the", " of", "\udce9"]
    norms = store.decoder_norms(SITE)
    assert norms is not None
    assert norms.tolist() == list(range(64))
    assert store.decoder_norms("elsewhere") is None
    assert (store.facts("gate"), store.facts("plan")) == ({"passed": True}, None)
    assert "2 of 2 segments, 80 tokens of 8 documents; sites model.layers.3" in repr(store)


def test_only_committed_segments_are_seen(open_writer: OpenWriter) -> None:
    with open_writer(num_segments=3) as writer:
        empty = open_scores(writer.path)
        assert (empty.sites, empty.segments, empty.is_complete) == ([], [], False)
        writer.write(make_segment(2))
        Path(str(writer.path), "segments", "000000-feed").mkdir()
        store = open_scores(writer.path)
    assert [segment.index for segment in store.segments] == [2]
    assert not store.is_complete


def test_one_column_can_be_read_alone_and_a_wrong_name_says_what_there_is(finished: Path) -> None:
    segment = open_scores(finished).segments[0]
    site = segment.site(SITE)
    assert list(site.document_sums(["sum_influence/next-token"]).columns) == ["sum_influence/next-token"]
    with pytest.raises(QueryError, match=r"no column 'sum_influence'; it has count, .*sum_influence/next-token"):
        site.latent_stats(["sum_influence"])
    with pytest.raises(QueryError, match=r"no site 'layer'; it has model.layers.3"):
        segment.site("layer")
    with pytest.raises(QueryError, match="expected 0 to 63"):
        site.by_latent(64)
    with pytest.raises(QueryError, match="tokens 0 to 41"):
        site.by_token(0, 41)
    with pytest.raises(QueryError, match="no column 'word'"):
        segment.token_column("word")


def test_what_is_not_a_store_is_said_to_be_none(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        open_scores(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is not a store: it has no run\.json"):
        open_scores(tmp_path)
    (finished / "run.json").unlink()
    with pytest.raises(StoreError, match="half-copied"):
        open_scores(finished)


def test_a_half_copied_store_names_the_segment_and_the_object(finished: Path) -> None:
    folder = finished / open_scores(finished).segments[1].commit["writer"]["folder"]
    store = open_scores(finished)
    (folder / "tokens/token_id/c.0").unlink()
    missing = r"segment 1 is damaged: its object \S+-\w+/tokens/token_id/c\.0 is missing \(1 such objects\); copy the"
    for read in (store.check_objects, store.segments[1].tokens, open_scores(finished).segments[1].tokens):
        with pytest.raises(StoreError, match=missing):
            read()
    (folder / "tokens/token_id/c.0").write_bytes(b"short")
    with pytest.raises(StoreError, match="has 5 bytes, committed were"):
        open_scores(finished).segments[1].tokens()
    (folder / f"sites/{SITE}/by_token/indices/zarr.json").unlink()
    with pytest.raises(StoreError, match=r"segment 1 is damaged: .* \(2 such objects\)"):
        open_scores(finished).segments[1].site(SITE).by_token()


def test_what_is_whole_of_a_half_copied_store_can_be_read(finished: Path) -> None:
    folder = finished / open_scores(finished).segments[1].commit["writer"]["folder"]
    (folder / "tokens/token_id/c.0").unlink()
    assert len(open_scores(finished).segments[0].tokens().token_id) == 40
    assert open_scores(finished).segments[1].document_keys() == [f"address-{m}" for m in range(4)]


def test_a_store_that_lacks_a_whole_segment_is_not_opened(finished: Path) -> None:
    shutil.rmtree(finished / open_scores(finished).segments[1].commit["writer"]["folder"])
    with pytest.raises(StoreError, match=r"segment 1 is damaged: its object \S+ is missing \(\d+ such objects\); copy"):
        open_scores(finished)


def test_a_segment_that_was_dropped_while_the_store_was_open_says_so(finished: Path) -> None:
    store = open_scores(finished)
    (finished / "commits/000001.json").unlink()
    with pytest.raises(StoreError, match="no longer there; `gradsae repair` has dropped it"):
        _ = store.segments[1].commit


def test_one_document_is_read_alone(finished: Path) -> None:
    segment = open_scores(finished).segments[1]
    documents = segment.documents()
    for slot in range(4):
        assert (segment.key_of(slot), segment.text_of(slot)) == (documents.key[slot], documents.text[slot])
    np.testing.assert_array_equal(segment.token_column("position", 3, 9), segment.tokens().position[3:9])
    assert list(segment.metadata(["Party", "none"])) == segment.columns == ["Party"]


@pytest.mark.parametrize(("name", "known"), [("run.json", "1 and 2"), ("commits/000001.json", "1")])
def test_a_newer_format_is_refused_with_both_versions(finished: Path, name: str, known: str) -> None:
    document = read_document(finished / name)
    (finished / name).write_bytes(document_bytes({**document, "format_version": 3}))
    with pytest.raises(FormatError, match=rf"format version 3; this release reads version {known}: install"):
        open_scores(finished)
