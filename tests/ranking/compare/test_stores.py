import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import typer
from typer.testing import CliRunner

from gradsae_fast.cli_compare import compare
from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of
from gradsae_fast.ranking.compare import compare_stores, counterparts, matching
from gradsae_fast.records import Array, SegmentScores, TokenMask
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores
from tests.ranking.conftest import World, make_segments, make_world

SITE, OBJECTIVE = "model.layers.3", "next-token"


def a_world(objective: str = OBJECTIVE) -> World:
    """A corpus scored at one site, in few segments: quick to write."""
    return make_world(sites=(SITE,), objectives=(objective,), columns=("party",), segment_documents=(7, 9))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One corpus scored with two SAEs, cut into segments in two ways."""

    world: World
    other: World
    a: ScoreStore
    b: ScoreStore


class Corpora:
    """Writes stores in which a token's id depends on its word alone, so that equal tokens can be told."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def __call__(self, world: World, **identity: Any) -> ScoreStore:
        self._count += 1
        path = self._folder / f"corpus{self._count}.gradsae"
        segments, first = make_segments(world), 0
        with ScoreWriter.create_or_resume(path, run={}, identity=identity, num_segments=len(segments)) as writer:
            for segment in segments:
                last = first + len(segment.tokens.mask)
                writer.write(with_ids(segment, world.words[first:last]))
                first = last
        return open_scores(path)


def with_ids(segment: SegmentScores, words: Sequence[str]) -> SegmentScores:
    token_id = np.array([zlib.crc32(word.encode()) % 1000 for word in words], np.uint32)
    return dataclasses.replace(segment, tokens=dataclasses.replace(segment.tokens, token_id=token_id))


@pytest.fixture
def corpora(tmp_path: Path) -> Corpora:
    return Corpora(tmp_path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    corpora = Corpora(tmp_path_factory.mktemp("pair"))
    world = a_world()
    other = dataclasses.replace(with_scores(world, 1), segment_documents=(2, 6, 8))
    return Pair(world=world, other=other, a=corpora(world), b=corpora(other))


def with_scores(world: World, seed: int) -> World:
    """The same corpus scored with another SAE: other activations and projections."""
    rng = np.random.default_rng(seed)
    shape = world.activation[SITE].shape
    active = rng.random(shape) < 0.4
    active[:, 7] = False
    return dataclasses.replace(
        world,
        activation={SITE: (rng.integers(1, 9, shape) / 8 * active).astype(np.float32)},
        projection={
            (SITE, name): (rng.integers(-4, 5, shape) / 8 * active).astype(np.float32) for name in world.objectives
        },
    )


def with_documents(world: World, documents: Sequence[int], cuts: tuple[int, ...]) -> World:
    """Some documents of a corpus, in this order, in segments of these sizes."""
    rows = np.concatenate([np.flatnonzero(world.document_N == m) for m in documents])
    lengths = [int(np.count_nonzero(world.document_N == m)) for m in documents]
    return dataclasses.replace(
        world,
        activation={site: values[rows] for site, values in world.activation.items()},
        projection={key: values[rows] for key, values in world.projection.items()},
        document_N=np.repeat(np.arange(len(documents)), lengths),
        position_N=world.position_N[rows],
        mask_N=world.mask_N[rows],
        words=[world.words[row] for row in rows],
        keys=[world.keys[m] for m in documents],
        metadata={name: [values[m] for m in documents] for name, values in world.metadata.items()},
        objective_values={name: values[list(documents)] for name, values in world.objective_values.items()},
        status=[world.status[m] for m in documents],
        segment_documents=cuts,
    )


def permuted(world: World, order: Array) -> World:
    """The same SAE with its latents in another order: latent c is latent order[c] of before."""
    return dataclasses.replace(
        world,
        activation={site: values[:, order] for site, values in world.activation.items()},
        projection={key: values[:, order] for key, values in world.projection.items()},
    )


def amounts(world: World, by: str) -> Array:
    """What a question asks of every token, float64 [N, C]."""
    g, a = world.influence(SITE, world.objectives[0]), world.activation[SITE].astype(np.float64)
    return {"influence": g, "positive": np.maximum(g, 0), "absolute": abs(g), "activation": a, "frequency": a != 0}[
        by
    ].astype(np.float64)


def samples(world: World, by: str) -> dict[str, Array]:
    """The mean over the counted tokens of each document that has one, by key."""
    value_NC, found = amounts(world, by), {}
    for m, key in enumerate(world.keys):
        rows = world.tokens_of([m])
        if len(rows):
            found[key] = value_NC[rows].mean(0)
    return found


def pearson(x_NA: Array, y_NB: Array) -> Array:
    """Correlations of all columns with all columns, NaN where one is constant."""
    with np.errstate(all="ignore"):
        full = np.corrcoef(x_NA, y_NB, rowvar=False)
    return full[: x_NA.shape[1], x_NA.shape[1] :]


def check_counterparts(table: pa.Table, r_AB: Array) -> None:
    """Compare an answer of match = "best" with the whole matrix of correlations."""
    rows = table.to_pydict()
    filled = np.where(np.isnan(r_AB), -np.inf, r_AB)
    for row, latent in enumerate(rows["latent"]):
        best, second = np.sort(filled[latent])[:-3:-1]
        match, runner_up = rows["match"][row], rows["runner_up"][row]
        assert match != runner_up
        np.testing.assert_allclose([rows["correlation"][row], filled[latent, match]], best, rtol=1e-9)
        np.testing.assert_allclose([rows["runner_up_correlation"][row], filled[latent, runner_up]], second, rtol=1e-9)
        assert rows["mutual"][row] == (best >= filled[:, match].max() - 1e-9)


@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation", "frequency"])
@pytest.mark.parametrize("level", ["tokens", "documents"])
def test_the_closest_latents_are_those_of_the_whole_matrix_of_correlations(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, by: str, level: str
) -> None:
    monkeypatch.setattr(counterparts, "_BLOCK_ELEMENTS", 40)
    monkeypatch.setattr(matching, "RUN_TOKENS", 11)
    world, other = pair.world, pair.other
    table = compare_stores(pair.a, pair.b, by=by, level=level, k=None)
    if level == "tokens":
        rows = world.counted()
        r_AB = pearson(amounts(world, by)[rows], amounts(other, by)[rows])
    else:
        r_AB = pearson(*(np.array(list(samples(w, by).values())) for w in (world, other)))
    check_counterparts(table, r_AB)
    assert len(table) == 10
    mean = np.array(list(samples(world, by).values())).mean(0)
    np.testing.assert_allclose(
        table.column("score_a"), np.sort(mean[[0, 1, 2, 3, 4, 5, 6, 9, 10, 11]])[::-1], rtol=1e-6
    )
    query = query_of(table)
    assert query["level"] == level
    assert query["num_mutual"] == sum(table.column("mutual").to_pylist())
    assert query["mean_correlation"] == pytest.approx(np.mean(table.column("correlation").to_pylist()))


@pytest.mark.parametrize("level", ["tokens", "documents", None])
def test_permuted_latents_find_each_other(corpora: Corpora, level: str | None) -> None:
    world = a_world()
    order = np.random.default_rng(3).permutation(12)
    table = compare_stores(corpora(world), corpora(permuted(world, order)), level=level, k=None)
    assert order[table.column("match").to_numpy()].tolist() == table.column("latent").to_pylist()
    np.testing.assert_allclose(table.column("correlation"), 1, rtol=1e-12)
    assert max(table.column("runner_up_correlation").to_pylist()) < 0.99
    assert all(table.column("mutual").to_pylist())
    assert table.column("rank_b").to_pylist() == table.column("rank").to_pylist()
    assert table.column("score_a").to_pylist() == table.column("score_b").to_pylist()
    assert query_of(table)["level"] == (level or "tokens")


def test_sites_of_one_store_can_be_compared(world: World, store: ScoreStore) -> None:
    table = compare_stores(store, store, site_a=SITE, site_b="model.layers.5", objective="entropy", k=4)
    rows = world.counted()
    a, b = (world.influence(site, "entropy")[rows] for site in world.sites)
    check_counterparts(table, pearson(a, b))
    assert query_of(table)["site_b"] == "model.layers.5"


def test_order_and_segments_of_the_other_store_do_not_matter(pair: Pair, corpora: Corpora) -> None:
    shuffled = with_documents(pair.other, [9, 4, 15, 0, 2, 12, 5, 8, 1, 3, 14, 13, 11, 7, 6, 10], (5, 1, 10))
    mixed = corpora(shuffled)
    for asked in ({"level": "tokens"}, {"level": "documents"}, {"match": "same"}):
        tables = [compare_stores(pair.a, b, k=None, **asked) for b in (pair.b, mixed)]  # type: ignore[arg-type]
        for name in tables[0].column_names:
            first, second = (np.array(table.column(name).to_pylist(), float) for table in tables)
            np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12, err_msg=name)


def test_documents_of_one_store_alone_are_left_out_and_counted(corpora: Corpora) -> None:
    world = a_world()
    other = with_documents(with_scores(world, 1), [12, 3, 0, 7, 8, 2], (4, 2))
    other.keys[3] = "another"
    few = with_documents(world, [0, 3, 8, 12], (4,))
    few_other = with_documents(with_scores(world, 1), [0, 3, 8, 12], (4,))
    expected = compare_stores(corpora(few), corpora(few_other), k=None)
    found = compare_stores(corpora(world), corpora(other), k=None)
    assert found.column("match").to_pylist() == expected.column("match").to_pylist()
    np.testing.assert_allclose(found.column("correlation"), expected.column("correlation"), rtol=1e-9)
    query = query_of(found)
    # Document 2 is in both and empty: matched, but with nothing to say.
    assert (query["num_documents"], query["num_only_a"], query["num_only_b"]) == (4, 11, 1)
    assert query["num_tokens"] == len(world.tokens_of([0, 3, 8, 12]))


def test_a_condition_chooses_documents_by_the_first_stores_metadata(pair: Pair, corpora: Corpora) -> None:
    world = pair.world
    other = dataclasses.replace(pair.other, metadata={"party": ["none"] * 16})
    table = compare_stores(pair.a, corpora(other), where="party=Democratic", k=None)
    rows = world.tokens_of([m for m in range(16) if world.metadata["party"][m] == "Democratic"])
    check_counterparts(table, pearson(amounts(world, "influence")[rows], amounts(other, "influence")[rows]))
    assert query_of(table)["num_only_a"] == query_of(table)["num_only_b"] == 0


@pytest.mark.parametrize("by", ["influence", "activation", "frequency"])
def test_paired_differences_equal_scipys(pair: Pair, by: str) -> None:
    world, other = pair.world, pair.other
    table = compare_stores(pair.a, pair.b, match="same", by=by, k=None).to_pydict()
    a_MC, b_MC = (np.array(list(samples(w, by).values())) for w in (world, other))
    latent = table["latent"]
    with np.errstate(all="ignore"):
        test = scipy.stats.ttest_rel(a_MC, b_MC)
    fires = np.flatnonzero(
        (amounts(world, "frequency")[world.counted()] + amounts(other, "frequency")[world.counted()]).any(0)
    )
    assert sorted(latent) == fires.tolist()
    q = np.full(12, np.nan)
    q[fires] = scipy.stats.false_discovery_control(test.pvalue[fires])
    correlation = np.array(
        [np.corrcoef(a_MC[:, c], b_MC[:, c])[0, 1] if a_MC[:, c].any() else np.nan for c in range(12)]
    )
    expected = {
        "difference": a_MC.mean(0) - b_MC.mean(0),
        "score_a": a_MC.mean(0),
        "score_b": b_MC.mean(0),
        "t": test.statistic,
        "p": test.pvalue,
        "q": q,
        "correlation": correlation,
        "num_active_documents_a": (np.array(list(samples(world, "frequency").values())) > 0).sum(0),
        "num_active_documents_b": (np.array(list(samples(other, "frequency").values())) > 0).sum(0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values[latent], rtol=1e-6, atol=1e-9, err_msg=name)
    assert np.abs(table["difference"]).tolist() == sorted(np.abs(table["difference"]), reverse=True)
    silent = [c for c in range(12) if not amounts(world, "frequency")[world.counted()][:, c].any()]
    order = [c for c in np.argsort(-a_MC.mean(0), kind="stable") if c not in silent]
    assert table["rank_a"] == [None if c in silent else order.index(c) + 1 for c in latent]


def test_the_rankings_are_compared_by_spearman(pair: Pair) -> None:
    table = compare_stores(pair.a, pair.b, match="same", k=None)
    expected = scipy.stats.spearmanr(table.column("score_a"), table.column("score_b")).statistic
    assert query_of(table)["spearman"] == pytest.approx(expected)


def test_a_store_differs_in_nothing_from_itself(store: ScoreStore) -> None:
    table = compare_stores(store, store, match="same", site_a=SITE, site_b=SITE, objective=OBJECTIVE, k=None)
    columns = table.to_pydict()
    assert columns["difference"] == [0.0] * len(table)
    assert all(np.isnan(columns[name]).all() for name in ("t", "p", "q"))
    np.testing.assert_allclose(columns["correlation"], 1, rtol=1e-9)
    assert columns["rank_a"] == columns["rank_b"]
    assert query_of(table)["spearman"] == pytest.approx(1)


def test_a_planted_shift_is_found_and_the_rest_is_not(corpora: Corpora) -> None:
    world = a_world()
    moved = dataclasses.replace(world, projection={key: values.copy() for key, values in world.projection.items()})
    active = world.activation[SITE][:, 5] > 0
    moved.projection[SITE, OBJECTIVE][active, 5] += 4
    table = compare_stores(corpora(moved), corpora(world), match="same", k=None).to_pydict()
    assert table["latent"][0] == 5
    assert table["difference"][0] > 0
    assert table["q"][0] < 0.01
    assert table["difference"][1:] == [0.0] * (len(table["latent"]) - 1)


def test_tokens_that_are_masked_in_one_store_count_in_neither(corpora: Corpora) -> None:
    world = a_world()
    mask_N = world.mask_N.copy()
    mask_N[np.flatnonzero(world.counted())[::5]] = TokenMask.NORM
    other = dataclasses.replace(with_scores(world, 1), mask_N=mask_N)
    table = compare_stores(corpora(world), corpora(other), k=None)
    rows = world.counted() & other.counted()
    check_counterparts(table, pearson(amounts(world, "influence")[rows], amounts(other, "influence")[rows]))
    lengths = [[len(w.tokens_of([m])) for m in range(16)] for w in (world, other)]
    both = [(x, y) for x, y in zip(*lengths, strict=True) if x and y]
    assert query_of(table)["num_unequal"] == sum(x != y for x, y in both)
    assert query_of(table)["num_documents"] == len(both)


def test_other_tokens_are_compared_by_documents(pair: Pair, corpora: Corpora) -> None:
    words = [word + "x" if word.startswith("w9") else word for word in pair.world.words]
    a, b = pair.a, corpora(dataclasses.replace(pair.other, words=words))
    assert query_of(compare_stores(a, b))["level"] == "documents"
    with pytest.raises(QueryError, match="other tokens in the document 'doc-09'"):
        compare_stores(a, b, level="tokens")


def test_a_probability_is_compared_with_each_documents_own_factor(corpora: Corpora) -> None:
    world = a_world("continuation-prob")
    other = with_scores(world, 1)
    rows = world.counted()
    table = compare_stores(corpora(world), corpora(other), k=None)
    check_counterparts(table, pearson(amounts(world, "influence")[rows], amounts(other, "influence")[rows]))


def test_latents_whose_scores_are_all_the_same_have_no_counterpart(corpora: Corpora) -> None:
    world = a_world()
    world.activation[SITE][:, 2] = 1
    world.projection[SITE, OBJECTIVE][:, 2] = 8
    table = compare_stores(corpora(world), corpora(with_scores(world, 1)), k=1).to_pydict()
    assert table["latent"] == [2]
    assert table["match"] == table["runner_up"] == table["rank_b"] == [None]
    assert np.isnan(table["correlation"]).all()
    assert np.isnan(table["score_b"]).all()
    assert table["mutual"] == [False]


def test_saes_of_different_size_have_counterparts(corpora: Corpora) -> None:
    world = a_world()
    order = np.array([11, 4, 0, 9])
    table = compare_stores(corpora(world), corpora(permuted(world, order)), k=None).to_pydict()
    found = {
        latent: (match, r)
        for latent, match, r in zip(table["latent"], table["match"], table["correlation"], strict=True)
    }
    for match, latent in enumerate(order):
        assert found[latent] == (match, pytest.approx(1))


def test_the_metadata_says_whether_corpus_and_sae_are_the_same(corpora: Corpora) -> None:
    world = a_world()
    identity = {"corpus": {"plan": "p"}, "saes": {SITE: {"digest": "s"}}}
    a, b = corpora(world, **identity), corpora(world, **identity)
    c, bare = corpora(world, corpus={"plan": "q"}, saes={SITE: {"digest": "t"}}), corpora(world)
    facts = [query_of(compare_stores(a, other)) for other in (b, c, bare)]
    assert [found["same_corpus"] for found in facts] == [True, False, False]
    assert [found.get("same_sae") for found in facts] == [True, False, None]
    assert facts[0]["run"] == facts[0]["run_b"] != facts[1]["run_b"]


def test_what_chance_gives_falls_with_the_number_of_tokens(pair: Pair) -> None:
    tokens, documents = (query_of(compare_stores(pair.a, pair.b, level=level)) for level in ("tokens", "documents"))
    assert 0 < tokens["chance_correlation"] < documents["chance_correlation"] < 1
    rng = np.random.default_rng(0)
    best = [pearson(rng.standard_normal((30, 1)), rng.standard_normal((30, 200))).max() for _ in range(300)]
    assert counterparts.chance_correlation(30, 200) == pytest.approx(np.median(best), abs=0.03)


def test_one_latent_alone_is_compared_with_no_chance(corpora: Corpora) -> None:
    world = a_world()
    table = compare_stores(corpora(world), corpora(permuted(world, np.array([4]))), k=None)
    assert "chance_correlation" not in query_of(table)


@pytest.mark.parametrize("asked", [{"level": "tokens"}, {"level": "documents"}, {"match": "same"}])
def test_infinite_scores_correlate_with_nothing(corpora: Corpora, asked: dict[str, str]) -> None:
    world = a_world()
    rows = np.flatnonzero(world.counted() & (world.activation[SITE][:, 4] > 0))
    world.projection[SITE, OBJECTIVE][rows[[0, -1]], 4] = [np.inf, -np.inf]
    store = corpora(world)
    table = compare_stores(store, store, k=None, **asked).to_pydict()  # type: ignore[arg-type]
    unknown = [latent for latent, r in zip(table["latent"], table["correlation"], strict=True) if np.isnan(r)]
    assert unknown == [4]


def test_stores_without_a_common_document_cannot_be_compared(corpora: Corpora) -> None:
    world = a_world()
    other = dataclasses.replace(world, keys=[f"text-{m}" for m in range(16)])
    with pytest.raises(QueryError, match=r"no document with a counted token in common.*'doc-00'.*'text-0'"):
        compare_stores(corpora(world), corpora(other))


def test_two_documents_are_too_few_for_statistics_over_documents(corpora: Corpora) -> None:
    two = with_documents(a_world(), [0, 3], (2,))
    a, b = corpora(two), corpora(with_scores(two, 1))
    for asked in ({"match": "same"}, {"level": "documents"}):
        with pytest.raises(QueryError, match=r"2 documents .* expected 3 or more"):
            compare_stores(a, b, **asked)  # type: ignore[arg-type]
    assert len(compare_stores(a, b, level="tokens"))


def test_another_number_of_latents_is_another_sae(corpora: Corpora) -> None:
    world = a_world()
    with pytest.raises(QueryError, match=r"got 12 latents .* and 4 at"):
        compare_stores(corpora(world), corpora(permuted(world, np.arange(4))), match="same")


def test_other_objectives_or_masks_are_other_questions(corpora: Corpora) -> None:
    a, b = corpora(a_world()), corpora(a_world("entropy"))
    with pytest.raises(QueryError, match="objective 'next-token', store b with 'entropy'; say which with objective="):
        compare_stores(a, b)
    with pytest.raises(QueryError, match="unknown objective 'next-token'"):
        compare_stores(a, b, objective="next-token")


def test_stores_that_count_different_tokens_need_a_word_on_which(store: ScoreStore, special_store: ScoreStore) -> None:
    asked: dict[str, Any] = {"site_a": SITE, "site_b": SITE, "objective": OBJECTIVE}
    with pytest.raises(QueryError, match="include_special False, store b with True"):
        compare_stores(store, special_store, **asked)
    table = compare_stores(store, special_store, include_special=True, match="same", **asked)
    assert not np.any(table.column("difference"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"site_a": None}, "store a, .* has 2 sites; say which with site_a="),
        ({"site_b": None}, "store b, .* has 2 sites; say which with site_b="),
        ({"site_b": "model.layers.4"}, "unknown site 'model.layers.4'; did you mean"),
        ({"match": "nearest"}, "unknown match 'nearest'"),
        ({"level": "words"}, "unknown level 'words'"),
        ({"match": "same", "level": "tokens"}, "tests differences over documents"),
        ({"by": "charm"}, "unknown by"),
        ({"k": 0}, "got k = 0"),
        ({"where": "party=Whig"}, "no chosen document"),
        ({"where": "colour=red"}, "metadata column"),
    ],
)
def test_bad_questions_about_two_stores_are_refused(store: ScoreStore, bad: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"site_a": SITE, "site_b": SITE, "objective": OBJECTIVE}
    with pytest.raises(QueryError, match=message):
        compare_stores(store, store, **asked | bad)


def test_the_verb_says_what_the_function_says(store: ScoreStore) -> None:
    verbs = typer.Typer()
    verbs.command()(compare)
    table = compare_stores(store, store, site_a=SITE, site_b="model.layers.5", objective="entropy", match="same", k=3)
    sites = f"--site-a {SITE} --site-b model.layers.5 --objective entropy"
    result = CliRunner().invoke(verbs, f"{store.path} {store.path} --match same -k 3 {sites} --format json".split())
    assert result.exit_code == 0, result.output
    assert [row["latent"] for row in json.loads(result.stdout)["rows"]] == table.column("latent").to_pylist()
