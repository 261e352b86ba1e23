"""Sums of each side of signed latents are kept where there are two sides, and nothing else changes."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gradsae_fast.errors import QueryError
from gradsae_fast.records import DocumentTable, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.arrays import encoding
from gradsae_fast.store.arrays.stored import METADATA, StoredArray
from gradsae_fast.store.format.layout import Array
from tests.store.synthetic import SITE, dense, make_segment

OpenWriter = Callable[..., ScoreWriter]
SIDES = ("positive", "negative")
OBJECTIVES = ("next-token", "logit-diff:a/B")


def stored(open_writer: OpenWriter, *segments: SegmentScores, **settings: Any) -> ScoreStore:
    with open_writer(num_segments=len(segments), **settings) as writer:
        for segment in segments:
            writer.write(segment)
    return open_scores(writer.path)


@pytest.fixture
def earlier_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers keep no sums of one side, as they did before there were any."""
    monkeypatch.setattr(encoding, "POLARITIES", ())


def by_definition(part: Array, active: Array, influences: dict[str, Array], side: str) -> dict[str, Array]:
    """Every sum over the tokens (rows) of one side, each [C]."""
    reduced = np.max if side == "positive" else np.min
    outside = -np.inf if side == "positive" else np.inf
    columns = {
        "count": active.sum(0),
        "sum_activation": (part * active).sum(0),
        "max_activation": reduced(np.where(active, part, outside), axis=0, initial=outside),
    }
    for name, influence in influences.items():
        columns[f"sum_influence/{name}"] = (influence * active).sum(0)
        columns[f"sum_positive/{name}"] = (influence.clip(min=0) * active).sum(0)
        columns[f"sum_absolute/{name}"] = (abs(influence) * active).sum(0)
        columns[f"max_influence/{name}"] = np.where(active, influence, -np.inf).max(0, initial=-np.inf)
        columns[f"max_absolute/{name}"] = np.where(active, abs(influence), 0).max(0, initial=0)
    return columns


@pytest.mark.parametrize("include_special", [False, True])
@pytest.mark.parametrize("precision_bits", [3, 23])
@pytest.mark.parametrize("side", SIDES)
def test_sums_of_a_side_are_those_of_its_tokens_alone(
    open_writer: OpenWriter, side: str, precision_bits: int, include_special: bool
) -> None:
    segment = make_segment(signed=True, objectives=OBJECTIVES)
    settings = {"precision_bits": precision_bits, "aggregates_include_special": include_special}
    site = stored(open_writer, segment, **settings).segments[0].site(SITE)
    scores = site.by_token()
    counted = (segment.tokens.mask == 0) | include_special
    activation = dense(scores, scores.activation)
    influences = {name: dense(scores, scores.activation * scores.projections[name]) for name in OBJECTIVES}
    active = (activation > 0 if side == "positive" else activation < 0) & counted[:, None]
    sums, stats = site.document_sums(polarity=side), site.latent_stats(polarity=side)
    assert len(sums.indptr) == 5
    assert len(sums.columns) == 3 + 4 * len(OBJECTIVES)
    for m in range(4):
        rows = segment.tokens.document == m
        part = {name: values[rows] for name, values in influences.items()}
        expected = by_definition(activation[rows], active[rows], part, side)
        pairs = slice(int(sums.indptr[m]), int(sums.indptr[m + 1]))
        assert sums.indices[pairs].tolist() == np.flatnonzero(expected["count"]).tolist()
        for name, values in sums.columns.items():
            np.testing.assert_allclose(values[pairs], expected[name][sums.indices[pairs]], rtol=1e-6, err_msg=name)
    expected = by_definition(activation, active, influences, side)
    silent = expected["count"] == 0
    assert 0 < silent.sum() < 60
    assert stats.columns.keys() == expected.keys() - {
        f"{name}/{objective}" for name in ("sum_positive", "max_influence") for objective in OBJECTIVES
    }
    for name, values in stats.columns.items():
        np.testing.assert_allclose(values, np.where(silent, 0, expected[name]), rtol=1e-12, err_msg=name)
        assert not np.signbit(values[silent]).any(), f"{name}: a latent that is never active has 0, not -0"


def test_an_activation_below_zero_on_a_masked_token_alone_makes_a_site_signed(open_writer: OpenWriter) -> None:
    segment = make_segment()
    scores = segment.sites[SITE]
    masked = np.flatnonzero((segment.tokens.mask != 0) & (np.diff(scores.indptr) > 0))[0]
    activation = scores.activation.copy()
    activation[scores.indptr[masked]] *= -1
    site = (
        stored(open_writer, replace(segment, sites={SITE: replace(scores, activation=activation)}))
        .segments[0]
        .site(SITE)
    )
    assert site.is_signed
    assert site.document_sums(polarity="negative").columns["count"].size == 0
    assert site.latent_stats(polarity="negative").columns["count"].sum() == 0
    np.testing.assert_array_equal(site.document_sums(polarity="positive").indices, site.document_sums().indices)


def test_where_nothing_is_negative_the_positive_side_is_everything(open_writer: OpenWriter) -> None:
    site = stored(open_writer, make_segment()).segments[0].site(SITE)
    assert not site.is_signed
    for read in (site.document_sums, site.latent_stats):
        whole, above, below = read().columns, read(polarity="positive").columns, read(polarity="negative").columns
        assert above.keys() == below.keys() == whole.keys() - {"count_positive", "count_negative"}
        for name, values in above.items():
            np.testing.assert_array_equal(values, whole[name])
            assert values.any()
            assert not below[name].any()
    assert site.document_sums(polarity="negative").indptr.tolist() == [0] * 5
    assert len(site.document_sums(polarity="negative").indices) == 0
    assert len(site.latent_stats(polarity="negative").columns["count"]) == 64


def test_a_signed_segment_of_an_earlier_release_says_that_it_has_no_sums_of_a_side(
    open_writer: OpenWriter, earlier_release: None
) -> None:
    site = stored(open_writer, make_segment(signed=True)).segments[0].site(SITE)
    assert site.is_signed
    assert site.has_sums(None)
    for side in SIDES:
        assert not site.has_sums(side)
        with pytest.raises(QueryError, match=r"written by an earlier release.*by_token"):
            site.document_sums(polarity=side)
        with pytest.raises(QueryError, match="extract to a new store"):
            site.latent_stats(polarity=side)


def test_an_unknown_polarity_is_refused(open_writer: OpenWriter) -> None:
    site = stored(open_writer, make_segment(signed=True)).segments[0].site(SITE)
    with pytest.raises(QueryError, match="'negativ'; expected positive, negative or None"):
        site.latent_stats(polarity="negativ")


@pytest.mark.parametrize("profile", ["compact", "portable"])
def test_sides_add_objects_to_signed_segments_and_change_no_other_byte(
    open_writer: OpenWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    segments = [make_segment(), make_segment(1, signed=True)]
    after = stored(open_writer, *segments, profile=profile)
    monkeypatch.setattr(encoding, "POLARITIES", ())
    before = stored(open_writer, *segments, profile=profile, path=tmp_path / "before")
    assert after.segments[0].digest == before.segments[0].digest
    old, new = ({o["key"]: o["sha256"] for o in store.segments[1].commit["objects"]} for store in (before, after))
    assert {key: digest for key, digest in new.items() if key in old} == old
    added = {key.removeprefix(f"sites/{SITE}/").rsplit("/", 1)[0] for key in new.keys() - old.keys()}
    assert {path.partition("/")[0] for path in added} == {"documents", "latents"}
    assert all(path.split("/")[1] in SIDES for path in added)
    for store in (before, after):
        facts = {name: value for name, value in store.segments[1].commit.items() if name in ("counts", "sites")}
        assert facts == {name: after.segments[1].commit[name] for name in facts}


def unsigned_segment() -> SegmentScores:
    """Three documents (the second is empty) of six tokens; all values are exact."""
    rising = np.arange(6, dtype=np.uint32)
    return SegmentScores(
        index=0,
        tokens=TokenTable(
            token_id=rising,
            document=np.array([0, 0, 0, 2, 2, 2], np.uint32),
            position=rising,
            context=rising,
            char_start=rising,
            char_end=rising + 1,
            mask=np.array([1, 0, 0, 0, 4, 0], np.uint8),
        ),
        documents=DocumentTable(
            key=["a", "b", "c"],
            source=["x.jsonl"] * 3,
            row=np.arange(3),
            num_tokens=np.array([3, 0, 3], np.uint32),
            status=np.array([0, 1, 0], np.uint8),
            text=["one", "", "two"],
            metadata={"party": ["R", None, 3]},
            objectives={"next-token": np.array([-0.5, 0.0, -2.0])},
        ),
        sites={
            SITE: SparseScores(
                indptr=np.array([0, 2, 3, 5, 5, 6, 8]),
                indices=np.array([0, 3, 3, 1, 3, 2, 0, 3]),
                activation=np.array([1, 2, 0.5, 4, 1.5, 3, 0.25, 8], np.float32),
                projections={"next-token": np.array([0.5, -1, 2, 0.25, -0.5, 1, -4, 0.125], np.float32)},
                num_latents=5,
            )
        },
    )


def content_digest(store: ScoreStore) -> str:
    """Digest of all metadata, and of all values as they decode: what two builds of a compressor agree on."""
    lines = []
    segment = store.segments[0]
    folder = store.path / segment.commit["writer"]["folder"]
    for record in segment.commit["objects"]:
        path = folder / record["key"]
        is_metadata = path.name == METADATA
        content = path.read_bytes() if is_metadata else StoredArray(path.parent, record["key"]).read().tobytes()
        lines.append(f"{record['key']} {hashlib.sha256(content).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_segment_without_negative_activations_is_what_the_first_release_wrote(open_writer: OpenWriter) -> None:
    store = stored(open_writer, unsigned_segment(), profile="portable", precision_bits=23)
    assert content_digest(store) == "bd3a8821925a39205196fa256b407f5daaadeca433edefdd98203a91d5bb51fc"


def test_zarr_python_reads_the_sums_of_a_side_and_what_they_mean(open_writer: OpenWriter) -> None:
    store = stored(open_writer, make_segment(signed=True), profile="portable")
    site = store.segments[0].site(SITE)
    folder = store.path / store.segments[0].commit["writer"]["folder"] / "sites" / SITE
    for side, strongest in (("positive", "max a;"), ("negative", "min a, the most negative;")):
        for group, columns in (("documents", site.document_sums), ("latents", site.latent_stats)):
            got = zarr.open_array(folder / group / side / "max_activation", mode="r")
            np.testing.assert_array_equal(got[:], columns(polarity=side).columns["max_activation"])
            meaning = str(got.attrs["meaning"])
            assert meaning.startswith(strongest)
            assert meaning.endswith(f"of tokens with a {'>' if side == 'positive' else '<'} 0")


def test_damage_to_the_sums_of_a_side_is_found_and_healed(open_writer: OpenWriter) -> None:
    segments = [make_segment(index, signed=True) for index in range(2)]
    store = stored(open_writer, *segments)
    digests = [segment.digest for segment in store.segments]
    folder = store.path / store.segments[1].commit["writer"]["folder"] / "sites" / SITE
    shard = folder / "documents/negative/sum_activation/c.0"
    sound = shard.read_bytes()
    shard.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    (fault,) = verify(store.path)
    assert (fault.segment, fault.object[-42:]) == (1, str(shard)[-42:])
    shard.write_bytes(sound)
    assert verify(store.path) == []
    (folder / "latents/positive/count/zarr.json").unlink()
    (fault,) = verify(store.path, quick=True)
    assert fault.segment == 1
    assert repair(store.path) == [1]
    with open_writer(num_segments=2) as writer:
        assert writer.committed == {0}
        writer.write(segments[1])
    assert [segment.digest for segment in open_scores(store.path).segments] == digests
    assert verify(store.path) == []
