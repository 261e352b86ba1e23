import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

from gradsae_fast.cli_rank import rank
from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of, rank_latents, stability
from gradsae_fast.ranking.stability import Draws, rank_stability
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.sidecars.exact import ExactWriter

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE, SIGNED_SITE = "model.layers.3", "model.layers.5"
CHOSEN: dict[str, Any] = {"site": SITE, "objective": "next-token"}


def sums_of_documents(world: "World", site: str, by: str, documents: list[int]) -> tuple[Array, Array]:
    """Each counted document's sums [M, C] and length [M]."""
    lengths = np.array([len(world.tokens_of([m])) for m in documents])
    sums = [world.sums([m], site, "next-token") for m in documents]
    return np.array([s["num_active" if by == "frequency" else by] for s in sums]), lengths


def counted(world: "World") -> list[int]:
    return np.unique(world.document_N[world.counted()]).tolist()


def counts_of(num_documents: int, blocks: list[int], seed: int) -> Array:
    """Every draw that the bootstrap makes, int64 [M, B]."""
    parts = []
    for number, size in enumerate(blocks):
        draws, taken = Draws(seed, number, num_documents, size), list[Array]()
        while sum(map(len, taken)) < num_documents:
            taken.append(draws.take(3))
        parts.append(np.concatenate(taken))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation", "frequency"])
@pytest.mark.parametrize("smallest", [False, True])
def test_scores_and_ranks_equal_those_of_every_resample_made_by_hand(
    world: "World", store: ScoreStore, monkeypatch: pytest.MonkeyPatch, by: str, smallest: bool
) -> None:
    for name, small in (("_BLOCK_RESAMPLES", 90), ("_SLICE_DOCUMENTS", 4), ("_SLICE_LATENTS", 5)):
        monkeypatch.setattr(stability, name, small)
    table = rank_stability(store, by=by, k=4, resamples=200, seed=3, smallest=smallest, **CHOSEN).to_pydict()
    sums_MC, length_M = sums_of_documents(world, SITE, by, counted(world))
    count_MB = counts_of(len(length_M), [90, 90, 20], seed=3)
    score_BC = (count_MB.T @ sums_MC) / (count_MB.T @ length_M)[:, None]
    fires = [c for c in range(12) if world.sums(counted(world), SITE, "next-token")["num_active"][c]]
    order = np.where(smallest, -1, 1) * score_BC[:, fires]
    for row, latent in enumerate(table["latent"]):
        mine = order[:, [fires.index(latent)]]
        rank_B = 1 + (order > mine).sum(1)
        assert table["share_in_top_k"][row] == (rank_B <= 4).mean()
        ranks = [table[name][row] for name in ("rank_low", "median_rank", "rank_high")]
        assert ranks == [np.sort(rank_B)[i] for i in (4, 99, 194)]
        np.testing.assert_allclose(table["standard_error"][row], score_BC[:, latent].std(ddof=1), rtol=1e-9)
        low, high = np.percentile(score_BC[:, latent], [2.5, 97.5])
        np.testing.assert_allclose((table["low"][row], table["high"][row]), (low, high), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("by", ["influence", "frequency"])
def test_the_interval_agrees_with_scipys_bootstrap(world: "World", store: ScoreStore, by: str) -> None:
    table = rank_stability(store, by=by, k=3, resamples=10_000, **CHOSEN).to_pydict()
    sums_MC, length_M = sums_of_documents(world, SITE, by, counted(world))

    def ratio(sums: Array, lengths: Array, axis: int) -> Array:
        return sums.sum(axis) / lengths.sum(axis)

    for row, latent in enumerate(table["latent"]):
        reference = scipy.stats.bootstrap(
            (sums_MC[:, latent], length_M),
            ratio,
            paired=True,
            n_resamples=10_000,
            method="percentile",
            rng=np.random.default_rng(5),
        )
        width = reference.confidence_interval.high - reference.confidence_interval.low
        assert abs(table["low"][row] - reference.confidence_interval.low) < 0.06 * width
        assert abs(table["high"][row] - reference.confidence_interval.high) < 0.06 * width
        assert table["standard_error"][row] == pytest.approx(reference.standard_error, rel=0.04)


def test_rows_and_scores_are_those_of_the_ranking(store: ScoreStore) -> None:
    stable = rank_stability(store, k=5, resamples=100, where="party!=none", **CHOSEN)
    ranking = rank_latents(store, k=5, where="party!=none", **CHOSEN)
    assert stable.column("latent").to_pylist() == ranking.column("latent").to_pylist()
    assert stable.column("score").to_pylist() == ranking.column("mean_score").to_pylist()
    assert stable.column("num_documents").to_pylist() == ranking.column("num_documents").to_pylist()
    assert query_of(stable)["num_documents"] == query_of(ranking)["num_documents"]
    assert query_of(stable)["unit"] == "nats per scored token"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(store: ScoreStore) -> None:
    first, again, other = (rank_stability(store, resamples=300, seed=seed, **CHOSEN) for seed in (7, 7, 8))
    assert first.equals(again, check_metadata=True)
    assert not first.column("low").equals(other.column("low"))


@pytest.mark.parametrize("cuts", [(16,), (2, 5, 9)])
def test_segment_cuts_do_not_change_the_answer(
    world: "World", store: ScoreStore, make_store: "MakeStore", monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(stability, "_SLICE_DOCUMENTS", 5)
    other = make_store(dataclasses.replace(world, segment_documents=cuts))
    first, second = (rank_stability(s, resamples=300, k=12, **CHOSEN).to_pydict() for s in (store, other))
    assert first == second


@pytest.mark.parametrize("chunk", [3, 1 << 12])
def test_resamples_are_draws_with_replacement(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(stability, "_SLICE_DOCUMENTS", chunk)
    count_MB = counts_of(7, [40_000], seed=1)
    assert (count_MB.sum(0) == 7).all()
    covariance = np.cov(count_MB)
    np.testing.assert_allclose(count_MB.mean(1), 1, atol=0.03)
    np.testing.assert_allclose(np.diag(covariance), 1 - 1 / 7, atol=0.04)
    np.testing.assert_allclose(covariance[~np.eye(7, dtype=bool)], -1 / 7, atol=0.03)


def test_a_latent_that_leads_every_document_is_in_the_top_of_every_resample(make_store: "MakeStore") -> None:
    world = make_store.world()
    rows = np.flatnonzero(world.counted())
    world.activation[SITE][rows, 4] = 4
    world.projection[SITE, "next-token"][rows, 4] = 100
    one = world.document_N == 5  # and one that leads by one document alone
    world.activation[SITE][one, 9] = 4
    world.projection[SITE, "next-token"][one, 9] = 1000
    table = rank_stability(make_store(world), k=2, resamples=400).to_pydict()
    assert set(table["latent"]) == {4, 9}
    rock, luck = table["latent"].index(4), table["latent"].index(9)
    assert table["share_in_top_k"][rock] == 1
    assert table["standard_error"][rock] == pytest.approx(0, abs=1e-12)
    assert 0.5 < table["share_in_top_k"][luck] < 0.75  # in 1 - 1/e of the resamples document 5 is drawn
    assert table["rank_high"][luck] > 2


def test_equal_scores_share_the_better_rank(make_store: "MakeStore") -> None:
    world = make_store.world()
    for latent in (4, 6):
        world.activation[SITE][:, latent] = world.counted()
        world.projection[SITE, "next-token"][:, latent] = world.counted() * 64
    table = rank_stability(make_store(world), k=2, resamples=100).to_pydict()
    assert table["latent"] == [4, 6]
    assert table["rank_low"] == table["rank_high"] == [1, 1]


def test_a_probability_weighs_documents_by_their_own_factor(make_store: "MakeStore") -> None:
    world = make_store.world(objective="continuation-prob")
    table = rank_stability(make_store(world), k=3, resamples=100).to_pydict()
    documents = counted(world)
    sums = np.array([world.sums([m], SITE, "continuation-prob")["influence"] for m in documents])
    lengths = np.array([len(world.tokens_of([m])) for m in documents])
    count_MB = counts_of(len(documents), [100], seed=0)
    score_BC = (count_MB.T @ sums) / (count_MB.T @ lengths)[:, None]
    np.testing.assert_allclose(table["standard_error"], score_BC[:, table["latent"]].std(0, ddof=1), rtol=1e-5)


def test_a_latent_with_an_infinite_sum_has_no_interval(make_store: "MakeStore") -> None:
    world = make_store.world()
    rows = np.flatnonzero(world.counted() & (world.activation[SITE][:, 4] > 0))
    world.projection[SITE, "next-token"][rows[[0, -1]], 4] = [np.inf, -np.inf]
    table = rank_stability(make_store(world), k=12, resamples=100).to_pydict()
    for name in ("low", "high", "standard_error"):
        unknown = [latent for latent, value in zip(table["latent"], table[name], strict=True) if np.isnan(value)]
        assert unknown == [4]


def test_one_polarity_of_a_signed_sae_can_be_asked_for(world: "World", store: ScoreStore) -> None:
    asked: dict[str, Any] = {"site": SIGNED_SITE, "objective": "next-token", "by": "activation", "polarity": "negative"}
    stable, ranking = rank_stability(store, k=3, resamples=100, **asked), rank_latents(store, k=3, **asked)
    assert stable.column("score").to_pylist() == ranking.column("mean_score").to_pylist()
    assert all(
        low <= score <= high < 0
        for low, score, high in zip(*map(stable.to_pydict().get, ("low", "score", "high")), strict=True)
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"document": ["doc-00", "doc-01"]}, "2 of the chosen documents have a counted token; expected 3 or more"),
        ({"document": ["doc-00", "doc-01", "doc-02"]}, "2 of the chosen documents"),
        ({"k": None}, "got k = None"),
        ({"k": 0}, "got k = 0"),
        ({"resamples": 99}, "got resamples = 99; expected 100 or more"),
        ({"seed": -1}, "got seed = -1"),
        ({"by": "charm"}, "unknown by 'charm'"),
        ({"where": "party=Whig"}, "no chosen document"),
    ],
)
def test_bad_questions_about_stability_are_refused(store: ScoreStore, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        rank_stability(store, **CHOSEN | bad)


def test_the_verb_says_what_the_function_says(store: ScoreStore) -> None:
    table = rank_stability(store, by="absolute", k=3, resamples=150, seed=4, where="party!=none", **CHOSEN)
    options = "--by absolute -k 3 --resamples 150 --seed 4 --where party!=none"
    asked = f"stability {store.path} {options} --site {SITE} --objective next-token --format json"
    result = CliRunner().invoke(rank, asked.split())
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["latent"] for row in rows] == table.column("latent").to_pylist()
    assert [row["low"] for row in rows] == pytest.approx(table.column("low").to_pylist())


def test_exact_effects_take_the_place_of_sums(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(9, 7))
    plain = make_store(world)
    writer = ExactWriter(plain.path, plain.segments, plain.profile, 0.2, {SITE: np.array([4, 6])})
    rng = np.random.default_rng(0)
    drops = [rng.integers(-40, 400, (segment.num_documents, 2)) / 8 for segment in plain.segments]
    for segment, drop_MK in zip(plain.segments, drops, strict=True):
        writer.write(segment, {(SITE, "next-token"): drop_MK.astype(np.float32)})
    table = rank_stability(open_scores(plain.path), k=12, resamples=100, exact_dense=True).to_pydict()
    documents = counted(world)
    sums_MC, length_M = sums_of_documents(world, SITE, "influence", documents)
    fires_MC = sums_of_documents(world, SITE, "frequency", documents)[0] > 0
    sums_MC[:, [4, 6]] = np.where(fires_MC[:, [4, 6]], np.concatenate(drops)[documents], 0)
    count_MB = counts_of(len(documents), [100], seed=0)
    score_BC = (count_MB.T @ sums_MC) / (count_MB.T @ length_M)[:, None]
    np.testing.assert_allclose(table["score"], (sums_MC.sum(0) / length_M.sum())[table["latent"]], rtol=1e-9)
    np.testing.assert_allclose(table["standard_error"], score_BC[:, table["latent"]].std(0, ddof=1), rtol=1e-6)
