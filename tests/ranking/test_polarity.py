"""The two sides of a signed SAE's latents are told apart, as if the other side had never been active."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradsae_fast import open_scores, rank_documents, rank_latents, rank_tokens
from gradsae_fast.cli_rank import rank
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import QueryError
from gradsae_fast.extract import extract
from gradsae_fast.ranking import query_of
from gradsae_fast.records import Array, SparseScores
from gradsae_fast.store import ScoreStore, StoredSite
from gradsae_fast.store.arrays import encoding
from tests.ranking.conftest import MakeStore, World, make_world

UNSIGNED, SIGNED = "model.layers.3", "model.layers.5"
OBJECTIVE = "entropy"
QUESTION: dict[str, Any] = {"site": SIGNED, "objective": OBJECTIVE, "k": None}


def side_of(world: World, polarity: str) -> World:
    """The corpus with only one side of the signed site's latents."""
    activation_NC = world.activation[SIGNED]
    kept_NC = activation_NC > 0 if polarity == "positive" else activation_NC < 0
    return dataclasses.replace(
        world,
        activation=world.activation | {SIGNED: activation_NC * kept_NC},
        projection=world.projection | {(SIGNED, OBJECTIVE): world.projection[SIGNED, OBJECTIVE] * kept_NC},
    )


def sums_of_side(world: World, polarity: str, documents: Sequence[int], **options: bool) -> dict[str, Array]:
    """The sums of one side by their definitions, each [C]; the strongest negative activation is the most negative."""
    sums = side_of(world, polarity).sums(documents, SIGNED, OBJECTIVE, **options)
    if polarity == "negative":
        rows = world.tokens_of(documents, **options)
        sums["max_activation"] = np.minimum(world.activation[SIGNED][rows], 0).min(0, initial=0)
    return sums


def assert_rows_equal(rows: list[dict[str, Any]], expected: dict[str, Array]) -> None:
    """Latents of a ranking, and every column of it, are those of dense sums."""
    assert len(rows) > 5
    assert {row["latent"] for row in rows} == set(np.flatnonzero(expected["num_active"]).tolist())
    for row in rows:
        for name, value_C in expected.items():
            assert row[name] == value_C[row["latent"]], name


@pytest.fixture
def no_token_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the scores of tokens fails."""

    def by_token(self: StoredSite, start: int = 0, stop: int | None = None) -> SparseScores:
        raise AssertionError(f"{self.name}: tokens {start} to {stop} were read")

    monkeypatch.setattr(StoredSite, "by_token", by_token)


@pytest.mark.parametrize("include_special", [False, True])
@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_latents_are_ranked_by_one_side_alone(
    world: World, store: ScoreStore, polarity: str, include_special: bool
) -> None:
    everything = range(len(world.keys))
    expected = sums_of_side(world, polarity, everything, include_special=include_special)
    table = rank_latents(store, polarity=polarity, include_special=include_special, **QUESTION)
    assert query_of(table)["polarity"] == polarity
    assert_rows_equal(table.to_pylist(), expected)
    assert all((row["activation"] > 0) == (polarity == "positive") for row in table.to_pylist())


@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_the_sides_of_a_corpus_are_ranked_from_stored_sums(
    world: World, store: ScoreStore, no_token_scores: None, polarity: str
) -> None:
    table = rank_latents(store, polarity=polarity, **QUESTION)
    assert_rows_equal(table.to_pylist(), sums_of_side(world, polarity, range(len(world.keys))))


@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_segments_without_a_negative_activation_are_all_positive(
    make_store: MakeStore, no_token_scores: None, polarity: str
) -> None:
    world = make_world(columns=())
    upright = world.document_N < sum(world.segment_documents[:2])
    world.activation[SIGNED][upright] = abs(world.activation[SIGNED][upright])
    store = make_store(world)
    assert [segment.site(SIGNED).is_signed for segment in store.segments] == [False, False, True, True, True]
    table = rank_latents(store, polarity=polarity, **QUESTION)
    assert_rows_equal(table.to_pylist(), sums_of_side(world, polarity, range(len(world.keys))))


@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_a_store_of_an_earlier_release_gives_the_same_answers(
    world: World, store: ScoreStore, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, polarity: str
) -> None:
    monkeypatch.setattr(encoding, "POLARITIES", ())
    earlier = make_store(world)
    assert not any(segment.site(SIGNED).has_sums(polarity) for segment in earlier.segments)
    options = QUESTION | {"polarity": polarity}
    for include_special in (False, True):
        options["include_special"] = include_special
        before, after = (rank_latents(each, **options) for each in (earlier, store))
        assert before.equals(after, check_metadata=False)
        assert before.num_rows > 5
        for latent in (0, 3):
            for rank_them in (rank_documents, rank_tokens):
                before, after = (rank_them(each, latent=latent, **options | {"k": 3}) for each in (earlier, store))
                assert before.equals(after, check_metadata=False)
                assert before.num_rows == 3


@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_the_strongest_activation_in_a_document_is_the_one_furthest_from_zero(
    world: World, store: ScoreStore, polarity: str
) -> None:
    for row in rank_documents(store, latent=3, polarity=polarity, **QUESTION).to_pylist():
        expected = sums_of_side(world, polarity, [world.keys.index(row["key"])])
        for name in ("influence", "positive", "absolute", "activation", "max_influence", "max_activation"):
            assert row[name] == expected[name][3], name


def test_the_two_sides_of_a_latent_add_up_to_the_whole_in_every_document(store: ScoreStore) -> None:
    for latent in (0, 3, 8):
        whole, above, below = (
            {row["key"]: row for row in rank_documents(store, latent=latent, polarity=side, **QUESTION).to_pylist()}
            for side in (None, "positive", "negative")
        )
        assert whole.keys() == above.keys() | below.keys()
        assert latent == 8 or (above and below)
        for key, row in whole.items():
            for name in ("influence", "absolute", "activation", "num_active"):
                parts = [side[key][name] for side in (above, below) if key in side]
                assert row[name] == sum(parts), name


@pytest.mark.parametrize("polarity", ["positive", "negative"])
@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation"])
def test_tokens_of_one_side_come_in_the_order_of_all_tokens(
    store: ScoreStore, by: str, smallest: bool, polarity: str
) -> None:
    for latent in (0, 3, 5, 10):
        question = QUESTION | {"latent": latent, "by": by, "smallest": smallest}
        every = rank_tokens(store, **question).drop_columns("rank").to_pylist()
        wanted = [row for row in every if (row["activation"] > 0) == (polarity == "positive")]
        assert 4 <= len(wanted) < len(every)
        for k in (1, 4):
            found = rank_tokens(store, polarity=polarity, **question | {"k": k}).drop_columns("rank").to_pylist()
            assert found == wanted[:k]


def test_segments_that_cannot_hold_a_more_negative_token_are_not_read(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(columns=())
    world.activation[SIGNED][world.tokens_of([13, 14])[0], 3] = -16  # in the last of five segments
    world.activation[SIGNED][world.tokens_of([0])[0], 3] = 32
    store = make_store(world)
    reads: list[str] = []
    original = StoredSite.by_latent

    def by_latent(self: StoredSite, latent: int) -> tuple[Array, Array, dict[str, Array]]:
        reads.append(self._label)
        return original(self, latent)

    monkeypatch.setattr(StoredSite, "by_latent", by_latent)
    options: dict[str, Any] = QUESTION | {"latent": 3, "by": "activation", "smallest": True, "k": 1}
    assert rank_tokens(store, polarity="negative", **options)["activation"].to_pylist() == [-16]
    assert len(reads) == 1
    assert "segment 4" in reads[0]


def test_a_polarity_without_effect_or_meaning_is_refused(store: ScoreStore) -> None:
    with pytest.raises(QueryError, match=r"no activation at 'model\.layers\.3' is negative"):
        rank_latents(store, site=UNSIGNED, objective=OBJECTIVE, polarity="positive")
    with pytest.raises(QueryError, match="did you mean 'negative'"):
        rank_latents(store, polarity="negativ", **QUESTION)
    with pytest.raises(QueryError, match="exact or polarity"):
        rank_latents(store, polarity="negative", exact_dense=True, **QUESTION)


def test_a_signed_sae_is_scored_and_asked_for_its_negative_side(
    configure: Callable[..., ExtractConfig], write_sae: Any
) -> None:
    config = configure(sae={"path": str(write_sae("abstopk", name="signed"))})
    extract(config)
    store = open_scores(config.store.path)
    expected: dict[int, float] = {}
    for segment in store.segments:
        scores = segment.site(store.sites[0]).by_token()
        counted_Z = np.repeat(segment.token_column("mask") == 0, np.diff(scores.indptr))
        kept_Z = counted_Z & (scores.activation < 0)
        influence_Z = scores.activation * scores.projections["next-token"]
        for latent, influence in zip(scores.indices[kept_Z].tolist(), influence_Z[kept_Z].tolist(), strict=True):
            expected[latent] = expected.get(latent, 0.0) + influence
    found = {row["latent"]: row["score"] for row in rank_latents(store, k=None, polarity="negative").to_pylist()}
    assert found == pytest.approx(expected)
    assert len(found) > 5
    words = ["latents", str(config.store.path), "--polarity", "negative", "--format", "csv", "-k", "1"]
    first = CliRunner().invoke(rank, words).stdout.splitlines()[1]
    assert int(first.split(",")[1]) == max(found, key=lambda latent: found[latent])
