"""Answers with the index are those without it, and an index of other segments is not looked at."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradsae_fast.errors import BusyError, QueryError, StoreError
from gradsae_fast.ranking import rank_documents, rank_latents, rank_tokens
from gradsae_fast.ranking.index import build_index
from gradsae_fast.ranking.index.bounds import _outward, read_bounds
from gradsae_fast.ranking.postings import read_postings
from gradsae_fast.ranking.question import resolve
from gradsae_fast.ranking.selection import select
from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreStore, ScoreWriter, StoredSegment, keys, open_scores, repair, verify
from gradsae_fast.store.places.lock import locked
from tests.ranking.conftest import NUM_LATENTS, OBJECTIVES, SITES, MakeStore, make_segments, make_world, write_store

OBJECTIVES_WITH_SCALE = ("next-token", "continuation-prob")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an index that keeps four leading tokens; one site is signed, one objective has a scale."""
    path = tmp_path_factory.mktemp("indexed") / "scores.gradsae"
    write_store(path, make_world(seed=3, objectives=OBJECTIVES_WITH_SCALE))
    build_index(path, leaders=4)
    return path


@pytest.fixture(scope="module")
def pair(indexed: Path) -> tuple[ScoreStore, ScoreStore]:
    """The same store with its index and without."""
    return open_scores(indexed), open_scores(indexed, use_index=False)


def answer(rank: Callable[..., pa.Table], store: ScoreStore, **asked: Any) -> Any:
    """What a question gives: the table with its metadata, NaN as text, or the refusal."""
    try:
        table = rank(store, **asked)
    except QueryError as error:
        return str(error)
    return table.schema.metadata, {name: list(map(repr, table[name].to_pylist())) for name in table.column_names}


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    latent=st.integers(0, NUM_LATENTS - 1),
    by=st.sampled_from(["influence", "positive", "absolute", "activation"]),
    smallest=st.booleans(),
    k=st.sampled_from([1, 2, 3, 4, 5, 9, None]),
    where=st.sampled_from([None, None, "party=none", "year>=1940"]),
    document=st.sampled_from([None, None, "doc-05", ["doc-01", "doc-14"]]),
    polarity=st.sampled_from([None, None, "positive", "negative"]),
    include_special=st.sampled_from([None, None, False, True]),
    site=st.sampled_from(SITES),
    objective=st.sampled_from(OBJECTIVES_WITH_SCALE),
)
def test_tokens_are_ranked_alike_with_and_without_the_index(
    pair: tuple[ScoreStore, ScoreStore], latent: int, **asked: Any
) -> None:
    with_index, without = pair
    asked |= {"latent": latent, "context": 2}
    assert answer(rank_tokens, with_index, **asked) == answer(rank_tokens, without, **asked)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.sampled_from(["influence", "positive", "absolute", "activation", "frequency"]),
    smallest=st.booleans(),
    k=st.sampled_from([1, 5, None]),
    where=st.sampled_from([None, None, "party=none"]),
    document=st.sampled_from([None, None, "doc-05", ["doc-01", "doc-14"], "doc-99"]),
    polarity=st.sampled_from([None, "positive", "negative"]),
    include_special=st.sampled_from([None, False, True]),
    site=st.sampled_from(SITES),
    objective=st.sampled_from(OBJECTIVES_WITH_SCALE),
)
def test_latents_are_ranked_alike_to_the_last_bit(pair: tuple[ScoreStore, ScoreStore], **asked: Any) -> None:
    with_index, without = pair
    assert answer(rank_latents, with_index, **asked) == answer(rank_latents, without, **asked)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    latent=st.integers(0, NUM_LATENTS - 1),
    by=st.sampled_from(["influence", "positive", "absolute", "activation", "frequency"]),
    smallest=st.booleans(),
    per_token=st.booleans(),
    k=st.sampled_from([1, 2, 3, 5, None]),
    where=st.sampled_from([None, None, "party=none"]),
    polarity=st.sampled_from([None, None, "positive"]),
    include_special=st.sampled_from([None, None, True]),
    site=st.sampled_from(SITES),
    objective=st.sampled_from(OBJECTIVES_WITH_SCALE),
)
def test_documents_are_ranked_alike_to_the_last_bit(pair: tuple[ScoreStore, ScoreStore], **asked: Any) -> None:
    with_index, without = pair
    assert answer(rank_documents, with_index, **asked) == answer(rank_documents, without, **asked)


def test_few_segments_are_read_for_the_first_documents(pair: tuple[ScoreStore, ScoreStore]) -> None:
    with_index, without = pair
    asked: dict[str, Any] = {"latent": 1, "site": SITES[0], "objective": "next-token"}
    (key,) = rank_documents(without, k=1, **asked)["key"].to_pylist()
    ((holder, _),) = select(without, document=key)
    read: list[int] = []

    def noted(segment: StoredSegment, *rest: Any) -> Any:
        read.append(segment.index)
        return read_postings(segment, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradsae_fast.ranking.documents.read_postings", noted)
        assert rank_documents(with_index, k=1, **asked)["key"].to_pylist() == [key]
    assert read[0] == holder.index
    assert len(read) < len(without.segments)


def not_finite(segments: list[SegmentScores]) -> list[SegmentScores]:
    """Put NaN and Inf among the scores of two segments."""
    changed = []
    for segment in segments:
        scores = segment.sites[SITES[0]]
        projection = scores.projections["next-token"].copy()
        if segment.index in (1, 3):
            projection[::5], projection[1::5], projection[2::5] = np.nan, np.inf, -np.inf
        sites = {SITES[0]: replace(scores, projections={"next-token": projection})}
        changed.append(replace(segment, sites=sites))
    return changed


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation"])
def test_scores_that_are_not_finite_keep_their_places(make_store: MakeStore, by: str, smallest: bool) -> None:
    without = make_store.from_segments(not_finite(make_segments(make_store.world())))
    build_index(without.path, leaders=5)
    with_index = open_scores(without.path)
    assert with_index.index is not None
    for latent in (0, 5, 8):
        for k in (1, 5, 20, None):
            asked: dict[str, Any] = {"latent": latent, "by": by, "k": k, "smallest": smallest}
            assert answer(rank_tokens, with_index, **asked) == answer(rank_tokens, without, **asked)
            assert answer(rank_documents, with_index, **asked) == answer(rank_documents, without, **asked)


def test_leading_tokens_are_found_without_reading_any_segment_but_for_its_texts(indexed: Path) -> None:
    store = open_scores(indexed)
    shutil.copytree(indexed, copy := indexed.with_name("copy"))
    for scores in copy.glob("segments/*/sites"):
        shutil.rmtree(scores)
    stripped = open_scores(copy)
    asked: dict[str, Any] = {"site": SITES[0], "objective": "next-token", "k": 4}
    for by in ("influence", "activation"):
        assert rank_tokens(stripped, latent=1, by=by, **asked).to_pydict() == (
            rank_tokens(store, latent=1, by=by, **asked).to_pydict()
        )
    assert rank_latents(stripped, **asked).to_pydict() == rank_latents(store, **asked).to_pydict()
    with pytest.raises(StoreError, match="such objects"):
        rank_tokens(stripped, latent=1, **(asked | {"k": 5}))


def test_bounds_hold_and_are_tight_to_a_hundredth(indexed: Path) -> None:
    store = open_scores(indexed)
    assert store.index is not None
    world = make_world(seed=3, objectives=OBJECTIVES_WITH_SCALE)
    edges = np.cumsum([0, *world.segment_documents])
    for objective in OBJECTIVES_WITH_SCALE:
        influence_NC = world.influence(SITES[1], objective)
        for segment, (first, last) in enumerate(pairwise(edges.tolist())):
            rows = world.tokens_of(range(first, last))
            for latent in range(NUM_LATENTS):
                values = influence_NC[rows, latent][world.activation[SITES[1]][rows, latent] != 0]
                found = read_bounds(store.index, SITES[1], objective, latent, "influence")
                if len(values) == 0:
                    assert found.silent_S[segment]
                    continue
                assert found.low_S[segment] <= values.min() <= values.max() <= found.high_S[segment]
                np.testing.assert_allclose(
                    [found.low_S[segment], found.high_S[segment]], [values.min(), values.max()], rtol=0.01
                )


def test_rounding_outward_never_falls_below() -> None:
    values = np.concatenate([np.random.default_rng(0).standard_cauchy(10_000), [0.0, np.inf, -np.inf, 1e300, -1e300]])
    rounded = _outward(values).astype(np.float64)
    assert np.all(rounded >= values)
    finite = np.abs(values) < 1e30
    assert np.all(np.abs(rounded[finite] - values[finite]) <= 0.0079 * np.abs(values[finite]))


def test_keys_whose_hashes_are_equal_are_told_apart(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "key_hash", lambda key: len(key) % 3)
    store = make_store(make_store.world())
    build_index(store.path)
    indexed = open_scores(store.path)
    for key in ("doc-00", "doc-07", "doc-15"):
        (found,), (expected,) = select(indexed, document=key), select(store, document=key)
        assert (found[0].index, found[1].tolist()) == (expected[0].index, expected[1].tolist())
    with pytest.raises(QueryError, match="no committed document has the key 'doc-77'; did you mean 'doc-07'"):
        select(indexed, document="doc-77")


def test_a_key_is_found_among_many_wherever_it_lies(monkeypatch: pytest.MonkeyPatch, make_store: MakeStore) -> None:
    monkeypatch.setattr(keys, "_STEP", 2)
    store = make_store(world := make_store.world())
    build_index(store.path)
    indexed = open_scores(store.path)
    assert indexed.index is not None
    numbers = np.repeat(np.arange(len(world.segment_documents)), world.segment_documents)
    for number, key in enumerate(world.keys):
        (place,) = keys.find_key(indexed.index, key)
        assert place[0] == numbers[number]
        assert indexed.segments[place[0]].key_of(place[1]) == key


def test_an_index_of_other_segments_is_not_looked_at(indexed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(indexed, tmp_path / "scores"))
    (store / "commits/000002.json").unlink()
    opened = open_scores(store)
    assert opened.index is None
    assert [segment.index for segment in opened.segments] == [0, 1, 3, 4]
    build_index(store, leaders=4)
    again = open_scores(store)
    assert again.index is not None
    assert list(again.index.summaries) == [0, 1, 3, 4]
    assert len(list((store / "index").iterdir())) == 2  # the former index is gone
    for latent in range(NUM_LATENTS):
        asked: dict[str, Any] = {"latent": latent, "site": SITES[1], "objective": "next-token", "k": 3}
        assert answer(rank_tokens, again, **asked) == answer(rank_tokens, opened, **asked)


def test_a_segment_that_was_repaired_and_written_anew_makes_the_index_stale(make_store: MakeStore) -> None:
    world = make_store.world()
    path = make_store(world).path
    build_index(path)
    folder = path / open_scores(path).segments[1].commit["writer"]["folder"]
    (folder / "tokens/token_id/c.0").unlink()
    assert repair(path) == [1]
    assert open_scores(path).index is None
    with ScoreWriter.create_or_resume(path, run={}, identity={"corpus": "a test"}, num_segments=5) as writer:
        writer.write(make_segments(world)[1])
    opened = open_scores(path)
    assert (opened.is_complete, opened.index) == (True, None)
    assert opened.segments[1].token_column("token_id").tolist() == (make_segments(world)[1].tokens.token_id.tolist())


def test_opening_with_an_index_says_the_same_of_every_segment(pair: tuple[ScoreStore, ScoreStore]) -> None:
    with_index, without = pair
    assert repr(with_index) == repr(without)
    assert [s.summary for s in with_index.segments] == [s.summary for s in without.segments]
    assert [s.commit for s in with_index.segments] == [s.commit for s in without.segments]


def test_a_damaged_index_is_found_named_dropped_and_made_anew(indexed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(indexed, tmp_path / "scores"))
    assert verify(store) == []
    shard = next(store.glob("index/*/keys/hash/c.0"))
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    (fault, *_) = verify(store)
    assert (fault.segment, fault.object) == (None, str(shard.relative_to(store)))
    with pytest.raises(StoreError, match=r"keys/hash: .*`gradsae index \S+` makes it anew"):
        rank_latents(open_scores(store), document="doc-05", site=SITES[0], objective="next-token")
    told: list[str] = []
    assert repair(store, tell=told.append) == []
    assert "dropped index/" in told[0]
    assert (verify(store), open_scores(store).index) == ([], None)
    build_index(store)
    assert open_scores(store).index is not None


def test_a_damaged_record_of_the_index_says_what_to_do_and_can_be_replaced(indexed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(indexed, tmp_path / "scores"))
    (record,) = (store / "index").glob("*.json")
    record.write_bytes(record.read_bytes()[:-5])
    with pytest.raises(StoreError, match=r"is damaged: .*`gradsae index \S+` makes it anew"):
        open_scores(store)
    assert open_scores(store, use_index=False).num_documents == 16
    build_index(store)
    assert open_scores(store).index is not None


def test_an_index_that_was_copied_without_its_arrays_is_named_and_dropped(indexed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(indexed, tmp_path / "scores"))
    (folder,) = (path for path in (store / "index").iterdir() if path.is_dir())
    shutil.rmtree(folder)
    asked: dict[str, Any] = {"latent": 1, "site": SITES[0], "objective": "next-token", "k": 3}
    with pytest.raises(StoreError, match=r"cannot be read .*`gradsae index \S+` makes it anew, then open the store"):
        rank_tokens(open_scores(store), **asked)
    assert {fault.object.partition("/")[0] for fault in verify(store)} == {"index"}
    assert repair(store) == []
    assert (verify(store), open_scores(store).index) == ([], None)
    assert answer(rank_tokens, open_scores(store), **asked) == answer(rank_tokens, open_scores(indexed), **asked)


def test_a_store_that_grew_is_read_with_its_new_segment(make_store: MakeStore, tmp_path: Path) -> None:
    segments = make_segments(make_store.world())
    path = tmp_path / "growing"
    for last in (segments[:3], segments[3:]):
        with ScoreWriter.create_or_resume(path, run={}, identity={"corpus": "a test"}, num_segments=5) as writer:
            for segment in last:
                writer.write(segment)
            assert open_scores(path).index is None
        if last[-1].index == 2:
            build_index(path)
            before = open_scores(path)
            assert before.index is not None
    # who opened it before keeps an answer about the segments that were there
    assert before.num_documents == sum(len(segment.documents.key) for segment in segments[:3])
    assert open_scores(path).num_documents == sum(len(segment.documents.key) for segment in segments)


def test_the_same_segments_give_the_same_index(indexed: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(indexed, tmp_path / "scores"))
    digests = []
    for path in (indexed, store):
        build_index(path, leaders=4)
        opened = open_scores(path).index
        assert opened is not None
        digests.append(opened.digest)
    assert digests[0] == digests[1]


def test_an_index_is_made_of_something_and_by_one_process(make_store: MakeStore) -> None:
    with pytest.raises(QueryError, match="has no committed segment to index"):
        build_index(make_store.empty().path)
    store = make_store(make_store.world())
    for leaders in (-1, 257):
        with pytest.raises(QueryError, match=f"got leaders = {leaders}; expected 0 to 256"):
            build_index(store.path, leaders=leaders)
    with locked(store.path), pytest.raises(BusyError):
        build_index(store.path)


def test_special_tokens_count_where_the_store_counts_them(special_store: ScoreStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(str(special_store.path), tmp_path / "scores"))
    build_index(path, leaders=4)
    for special in (None, False, True):
        asked: dict[str, Any] = {"include_special": special, "site": SITES[1], "objective": OBJECTIVES[1], "k": 3}
        store = open_scores(path)
        assert answer(rank_latents, store, **asked) == answer(rank_latents, special_store, **asked)
        asked["latent"] = 2
        assert answer(rank_tokens, store, **asked) == answer(rank_tokens, special_store, **asked)


def test_a_tally_by_one_amount_has_that_amount_only(store: ScoreStore) -> None:
    from gradsae_fast.ranking.tally import tally

    question = resolve(store, by="influence", k=None, site=SITES[1], objective="entropy", include_special=None)
    for segment in store.segments:
        for slots in (np.arange(segment.num_documents), np.arange(1)):
            whole = tally(store, segment, slots, question)
            for by in ("influence", "positive", "absolute", "activation", "frequency", "max_influence"):
                part = tally(store, segment, slots, question, by=by)
                np.testing.assert_array_equal(part.amount_P(by), whole.amount_P(by))
                np.testing.assert_array_equal(part.latent_P, whole.latent_P)
                other = "activation" if by != "activation" else "influence"
                with pytest.raises(ValueError, match="tally with by="):
                    part.amount_P(other)
