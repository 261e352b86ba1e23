from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of, rank_documents, rank_latents
from gradsae_fast.store import ScoreStore

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE, SIGNED_SITE = "model.layers.3", "model.layers.5"
CHOSEN: dict[str, Any] = {"site": SITE, "objective": "next-token"}
LATENT = 4


def by_hand(
    world: "World", latent: int, by: str, *, site: str, objective: str, include_special: bool, per_token: bool
) -> list[dict[str, Any]]:
    rows = []
    for m, key in enumerate(world.keys):
        sums = world.sums([m], site, objective, include_special=include_special)
        num_tokens = len(world.tokens_of([m], include_special=include_special))
        if sums["num_active"][latent]:
            row = {name: values[latent] for name, values in sums.items()}
            row |= {"key": key, "num_tokens": num_tokens}
            row["mean_score"] = row[by] if by == "frequency" else row[by] / num_tokens
            row["score"] = row["mean_score"] if per_token else row[by]
            rows.append((m, row))
    return [row for _, row in sorted(rows, key=lambda pair: (-pair[1]["score"], pair[0]))]


@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation", "frequency"])
@pytest.mark.parametrize(("site", "objective"), [(SITE, "next-token"), (SIGNED_SITE, "entropy")])
@pytest.mark.parametrize("include_special", [None, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_documents_of_a_latent_equal_sums_by_hand(
    world: "World", store: ScoreStore, by: str, site: str, objective: str, include_special: bool | None, per_token: bool
) -> None:
    table = rank_documents(
        store,
        latent=LATENT,
        by=by,
        k=None,
        per_token=per_token,
        site=site,
        objective=objective,
        include_special=include_special,
    )
    expected = by_hand(
        world, LATENT, by, site=site, objective=objective, include_special=bool(include_special), per_token=per_token
    )
    assert 5 < len(expected) == table.num_rows
    for rank, (row, wanted) in enumerate(zip(table.to_pylist(), expected, strict=True), 1):
        assert row["rank"] == rank
        assert {name: row[name] for name in wanted} == wanted


def test_the_documents_metadata_comes_with_them(world: "World", store: ScoreStore) -> None:
    table = rank_documents(store, latent=LATENT, k=None, **CHOSEN)
    names = ["party", "year", "weight", "revised", "tags", "metadata.score"]
    assert table.column_names[-len(names) :] == names
    for row in table.to_pylist():
        m = world.keys.index(row["key"])
        for name in ("party", "year", "weight", "revised"):
            assert row[name] == world.metadata[name][m]
        assert row["metadata.score"] == world.metadata["score"][m]
        assert row["tags"] == f'["a", {m}]'
    assert [str(table.schema.field(name).type) for name in names] == [
        "string",
        "int64",
        "double",
        "bool",
        "string",
        "string",
    ]


def test_a_documents_sums_are_the_same_from_either_side(store: ScoreStore) -> None:
    row = rank_documents(store, latent=LATENT, k=1, **CHOSEN).to_pylist()[0]
    latents = rank_latents(store, document=row["key"], k=None, **CHOSEN).to_pylist()
    (other,) = (latent for latent in latents if latent["latent"] == LATENT)
    for name in (
        "score",
        "mean_score",
        "influence",
        "positive",
        "absolute",
        "activation",
        "num_active",
        "max_influence",
    ):
        assert row[name] == other[name]


def test_a_condition_leaves_documents_out(world: "World", store: ScoreStore) -> None:
    everything = rank_documents(store, latent=LATENT, k=None, **CHOSEN).to_pylist()
    table = rank_documents(store, latent=LATENT, k=None, where="party=none", **CHOSEN)
    expected = [row["key"] for row in everything if row["party"] == "none"]
    assert table.column("key").to_pylist() == expected
    assert query_of(table)["where"] == "party=none"
    assert query_of(table)["num_documents"] == 3  # four have the party, one of them is empty


def test_the_smallest_come_first_when_asked(store: ScoreStore) -> None:
    scores = rank_documents(store, latent=LATENT, k=None, smallest=True, **CHOSEN).column("score").to_numpy()
    assert scores[0] < 0 < scores[-1]
    np.testing.assert_array_equal(scores, np.sort(scores))


def test_ties_keep_corpus_order(make_store: "MakeStore") -> None:
    world = make_store.world()
    world.activation[SITE][:] = 0
    world.projection[SITE, "next-token"][:] = 0
    for m, influence in ((14, 0.5), (0, 0.5), (9, 0.75), (6, 0.5)):
        world.activation[SITE][world.tokens_of([m])[0], LATENT] = 1
        world.projection[SITE, "next-token"][world.tokens_of([m])[0], LATENT] = influence
    store = make_store(world)
    assert rank_documents(store, latent=LATENT).column("key").to_pylist() == ["doc-09", "doc-00", "doc-06", "doc-14"]
    assert rank_documents(store, latent=LATENT, k=2).column("key").to_pylist() == ["doc-09", "doc-00"]


def test_a_latent_that_never_fires_gives_an_empty_table_with_its_columns(store: ScoreStore) -> None:
    table = rank_documents(store, latent=7, **CHOSEN)
    assert table.num_rows == 0
    assert table.column_names[:3] == ["rank", "key", "score"]
    assert str(table.schema.field("key").type) == "string"


def test_a_probability_is_weighed_by_the_documents_own_probability(make_store: "MakeStore") -> None:
    world = make_store.world(objective="continuation-prob")
    table = rank_documents(make_store(world), latent=LATENT, k=None)
    expected = by_hand(
        world,
        LATENT,
        "influence",
        site=SITE,
        objective="continuation-prob",
        include_special=False,
        per_token=False,
    )
    assert table.column("key").to_pylist() == [row["key"] for row in expected]
    np.testing.assert_allclose(table.column("score"), [row["score"] for row in expected], rtol=1e-12)


def test_the_unit_says_when_scores_are_per_token(store: ScoreStore) -> None:
    units = [
        query_of(rank_documents(store, latent=LATENT, by=by, per_token=per_token, **CHOSEN))["unit"]
        for by, per_token in (("influence", False), ("influence", True), ("activation", True), ("frequency", True))
    ]
    assert units == [
        "nats",
        "nats per scored token",
        "SAE activation per scored token",
        "active tokens per scored token",
    ]


@pytest.mark.parametrize("latent", [-1, 12])
def test_a_latent_that_the_sae_does_not_have_is_refused(store: ScoreStore, latent: int) -> None:
    with pytest.raises(QueryError, match=f"got latent {latent}; expected 0 to 11, the 12 latents of the SAE at"):
        rank_documents(store, latent=latent, **CHOSEN)
