import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradsae_fast.cli_rank import rank
from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of
from gradsae_fast.ranking.oddities import rank_oddities
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores
from tests.ranking.conftest import make_segments

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE, SIGNED_SITE = "model.layers.3", "model.layers.5"
CHOSEN: dict[str, Any] = {"site": SITE, "objective": "next-token"}
NORM_C = np.arange(1, 13, dtype=np.float32) / 4
EVERY: dict[str, Any] = {"min_active": 1, "min_documents": 2, "max_frequency": 1.0}


@pytest.fixture(scope="module")
def normed(world: "World", tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    """The shared corpus with decoder norms."""
    path, segments = tmp_path_factory.mktemp("normed") / "scores.gradsae", make_segments(world)
    with ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=len(segments)) as writer:
        for segment in segments:
            writer.write(segment)
        writer.write_dictionary(None, dict.fromkeys(world.sites, NORM_C))
    return open_scores(path)


def expected_scores(world: "World", site: str, *, include_special: bool, norm_C: Array) -> dict[str, Array]:
    """Both scores of every latent, by their definitions, over all documents."""
    rows = np.flatnonzero(world.counted(include_special=include_special))
    a_NC = np.abs(world.activation[site][rows].astype(np.float64)) * norm_C
    g_NC = np.abs(world.influence(site, "next-token")[rows])
    written, absolute, active = a_NC.sum(0), g_NC.sum(0), (a_NC > 0).sum(0)
    by_document = [world.document_N[rows] == m for m in range(len(world.keys))]
    sums_MC = np.array([g_NC[of].sum(0) for of in by_document])
    active_MC = np.array([(a_NC[of] > 0).sum(0) for of in by_document])
    with np.errstate(all="ignore"):
        rests = (absolute - sums_MC) / (active - active_MC)
        rests[sums_MC < sums_MC.max(0)] = np.inf  # of equally strong documents the one that leaves least
        left_out = rests.min(0)
        idle = (written / written.sum()) / (absolute / absolute.sum())
    return {"idle": idle, "decisive": left_out, "written": written, "num_active": active, "absolute": absolute}


@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
@pytest.mark.parametrize("include_special", [False, True])
def test_idle_latents_are_ordered_by_their_share_of_what_is_written_over_their_share_of_influence(
    world: "World", normed: ScoreStore, site: str, include_special: bool
) -> None:
    table = rank_oddities(
        normed, min_active=1, k=None, site=site, objective="next-token", include_special=include_special
    )
    expected = expected_scores(world, site, include_special=include_special, norm_C=NORM_C)
    share = expected["written"] / expected["written"].sum()
    listed = np.flatnonzero(share >= 1 / np.count_nonzero(expected["num_active"]))
    latents = table.column("latent").to_numpy()
    assert sorted(latents) == listed.tolist()
    np.testing.assert_allclose(table.column("score"), np.sort(expected["idle"][listed])[::-1], rtol=1e-9)
    np.testing.assert_allclose(table.column("score"), expected["idle"][latents], rtol=1e-9)
    np.testing.assert_allclose(table.column("activation_share"), share[latents], rtol=1e-9)
    assert query_of(table)["written"] == "|activation| * norm of the decoder row"


@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
def test_decisive_latents_are_ordered_by_their_mean_without_the_strongest_document(
    world: "World", store: ScoreStore, site: str
) -> None:
    table = rank_oddities(store, kind="decisive", k=None, **EVERY, site=site, objective="next-token")
    expected = expected_scores(world, site, include_special=False, norm_C=np.ones(12))
    latents = table.column("latent").to_numpy()
    assert sorted(latents) == np.flatnonzero(expected["num_active"]).tolist()
    scores = table.column("score").to_numpy()
    assert scores.tolist() == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, expected["decisive"][latents], rtol=1e-6)  # the document sums are float32
    np.testing.assert_allclose(
        table.column("mean_absolute"), expected["absolute"][latents] / expected["num_active"][latents], rtol=1e-9
    )


def test_a_latent_that_writes_much_to_no_effect_leads_the_idle(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(9, 7))
    world.activation[SITE][:, 3] *= 50
    world.projection[SITE, "next-token"][:, 3] /= 1024
    table = rank_oddities(make_store(world), min_active=1)
    assert table.column("latent")[0].as_py() == 3
    assert table.column("score")[0].as_py() > 20


def test_effects_that_cancel_are_no_idleness(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(9, 7))
    rows = np.flatnonzero(world.counted() & (world.activation[SITE][:, 3] > 0))
    world.activation[SITE][rows, 3] = 50
    world.projection[SITE, "next-token"][rows, 3] = np.where(np.arange(len(rows)) % 2, 10, -10)
    table = rank_oddities(make_store(world), min_active=1).to_pydict()
    assert 3 in table["latent"]
    assert table["score"][table["latent"].index(3)] < 1


def test_latents_of_equal_activity_and_no_influence_at_all_have_an_infinite_score(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(9, 7))
    world.activation[SITE][:, 5] *= 9
    world.projection[SITE, "next-token"][:, 5] = 0
    table = rank_oddities(make_store(world), min_active=1)
    assert (table.column("latent")[0].as_py(), table.column("score")[0].as_py()) == (5, np.inf)


@pytest.mark.parametrize("freaks", ["one token", "all tokens of one document"])
def test_a_freak_document_leads_no_list_of_the_decisive(make_store: "MakeStore", freaks: str) -> None:
    world = make_store.world(segment_documents=(9, 7))
    before = rank_oddities(make_store(world), kind="decisive", k=None, **EVERY).to_pydict()
    rows = np.flatnonzero(world.counted() & (world.activation[SITE][:, 6] > 0))
    document = np.bincount(world.document_N[rows]).argmax()
    rows = rows[world.document_N[rows] == document][: 1 if freaks == "one token" else None]
    world.projection[SITE, "next-token"][rows, 6] = 2**20
    after = rank_oddities(make_store(world), kind="decisive", k=None, **EVERY).to_pydict()
    at = after["latent"].index(6)
    assert after["mean_absolute"][at] == max(after["mean_absolute"])
    assert after["score"][at] <= 2 * max(before["score"])
    assert np.isfinite(after["score"]).all()


def test_frequent_latents_and_those_of_few_tokens_or_documents_are_not_decisive(
    world: "World", store: ScoreStore
) -> None:
    full = world.sums(range(len(world.keys)), SITE, "next-token")
    floors: dict[str, Any] = {"min_active": 22, "min_documents": 12, "max_frequency": 0.31}
    table = rank_oddities(store, kind="decisive", k=None, **CHOSEN, **floors)
    documents = np.array([world.sums([m], SITE, "next-token")["num_active"] > 0 for m in range(len(world.keys))]).sum(0)
    expected = (full["num_active"] >= 22) & (documents >= 12) & (full["frequency"] <= 0.31)
    assert sorted(table.column("latent").to_pylist()) == np.flatnonzero(expected).tolist()
    assert 0 < expected.sum() < 10
    query = query_of(table)
    assert {name: query[name] for name in floors} == floors
    assert query["num_candidates"] == expected.sum()


def test_the_defaults_of_the_decisive_are_ten_tokens_three_documents_and_a_hundredth_of_the_tokens(
    store: ScoreStore,
) -> None:
    query = query_of(rank_oddities(store, kind="decisive", **CHOSEN))
    assert (query["min_active"], query["min_documents"], query["max_frequency"]) == (10, 3, 0.01)
    assert query["unit"] == "nats per active token"


def test_shares_do_not_change_with_the_unit_of_the_objective(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(9, 7))
    tables = [rank_oddities(make_store(world), min_active=1).to_pydict()]
    world.projection[SITE, "next-token"][:] *= 8
    tables.append(rank_oddities(make_store(world), min_active=1).to_pydict())
    for name in ("latent", "score", "activation_share", "influence_share"):
        assert tables[0][name] == tables[1][name]


def test_chosen_documents_alone_are_looked_at(world: "World", store: ScoreStore) -> None:
    members = [m for m, party in enumerate(world.metadata["party"]) if party == "Republican"]
    table = rank_oddities(store, where="party=Republican", min_active=1, k=None, **CHOSEN).to_pydict()
    sums = world.sums(members, SITE, "next-token")
    assert table["num_active"] == sums["num_active"][table["latent"]].tolist()
    assert query_of(rank_oddities(store, document="doc-01", min_active=1, **CHOSEN))["num_documents"] == 1


def test_infinite_influences_are_listed_last(make_store: "MakeStore") -> None:
    world = make_store.world()
    rows = np.flatnonzero(world.counted() & (world.activation[SITE][:, 4] > 0))
    world.projection[SITE, "next-token"][rows[[0, -1]], 4] = [np.inf, -np.inf]
    table = rank_oddities(make_store(world), kind="decisive", k=None, **EVERY).to_pydict()
    assert table["latent"][-1] == 4
    assert np.isnan(table["score"]).tolist() == [False] * (len(table["score"]) - 1) + [True]


def test_the_metadata_says_where_activations_stand_for_themselves(store: ScoreStore) -> None:
    assert query_of(rank_oddities(store, **CHOSEN))["written"] == "|activation|"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": "lazy"}, "unknown kind 'lazy'"),
        ({"min_active": 0}, "min_active = 0; expected 1 or more"),
        ({"min_documents": 2}, "min_documents has no effect on kind = 'idle'"),
        ({"max_frequency": 0.1}, "max_frequency has no effect on kind = 'idle'"),
        ({"kind": "decisive", "min_documents": 1}, "expected 2 or more"),
        ({"kind": "decisive", "max_frequency": 0.0}, "above 0 and at most 1"),
        ({"kind": "decisive", "max_frequency": float("nan")}, "above 0 and at most 1"),
        ({"document": "doc-02"}, "no counted token"),
        ({"document": "nowhere"}, "no committed document"),
        ({"k": 0}, "got k = 0"),
        ({"site": "model.layers.9"}, "unknown site"),
    ],
)
def test_bad_questions_about_oddities_are_refused(store: ScoreStore, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        rank_oddities(store, **CHOSEN | bad)


def test_a_store_without_segments_has_no_oddities(make_store: "MakeStore") -> None:
    with pytest.raises(QueryError, match="no committed segment"):
        rank_oddities(make_store.empty())


def test_segment_cuts_do_not_change_oddities(world: "World", store: ScoreStore, make_store: "MakeStore") -> None:
    other = make_store(dataclasses.replace(world, segment_documents=(16,)))
    for kind in ("idle", "decisive"):
        floors = {"min_active": 1} if kind == "idle" else EVERY
        first, second = (rank_oddities(s, kind=kind, k=None, **floors, **CHOSEN).to_pydict() for s in (store, other))
        assert first == second


def test_the_verb_says_what_the_function_says(store: ScoreStore) -> None:
    table = rank_oddities(store, kind="decisive", k=3, where="party!=none", **CHOSEN, **EVERY)
    options = "--kind decisive --min-active 1 --min-documents 2 --max-frequency 1 --where party!=none -k 3"
    asked = f"oddities {store.path} {options} --site {SITE} --objective next-token --format json"
    result = CliRunner().invoke(rank, asked.split())
    assert result.exit_code == 0, result.output
    assert [row["latent"] for row in json.loads(result.stdout)["rows"]] == table.column("latent").to_pylist()
