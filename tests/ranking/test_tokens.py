from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of, rank_latents, rank_tokens
from gradsae_fast.ranking.question import SUMS
from gradsae_fast.ranking.tokens import TOKEN_VALUES
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.arrays.site import StoredSite
from tests.terminal import gradsae

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE, SIGNED_SITE = "model.layers.3", "model.layers.5"
CHOSEN: dict[str, Any] = {"site": SITE, "objective": "next-token"}
LATENT = 4


def values_by_hand(world: "World", by: str, site: str, objective: str) -> Array:
    g = world.influence(site, objective)[:, LATENT]
    a = world.activation[site][:, LATENT].astype(np.float64)
    return {"influence": g, "positive": np.maximum(g, 0), "absolute": abs(g), "activation": a}[by]


def rows_by_hand(
    world: "World",
    by: str,
    *,
    site: str = SITE,
    objective: str = "next-token",
    smallest: bool = False,
    special: bool = False,
) -> list[int]:
    """Rows of the corpus in rank order, by Python's own sort."""
    values = values_by_hand(world, by, site, objective)
    listed = np.flatnonzero((world.activation[site][:, LATENT] != 0) & world.counted(include_special=special))
    return sorted(listed.tolist(), key=lambda row: (values[row] if smallest else -values[row], row))


def places(world: "World", rows: list[int]) -> list[tuple[str, int]]:
    return [(world.keys[world.document_N[row]], int(world.position_N[row])) for row in rows]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every segment and site whose postings are read, in order."""
    labels: list[str] = []
    original = StoredSite.by_latent

    def by_latent(self: StoredSite, latent: int) -> tuple[Array, Array, dict[str, Array]]:
        labels.append(self._label)
        return original(self, latent)

    monkeypatch.setattr(StoredSite, "by_latent", by_latent)
    return labels


@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation"])
@pytest.mark.parametrize(("site", "objective"), [(SITE, "next-token"), (SIGNED_SITE, "entropy")])
@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("k", [1, 5, None])
def test_tokens_of_a_latent_equal_a_full_scan(
    world: "World", store: ScoreStore, by: str, site: str, objective: str, smallest: bool, special: bool, k: int | None
) -> None:
    table = rank_tokens(
        store,
        latent=LATENT,
        by=by,
        k=k,
        site=site,
        objective=objective,
        smallest=smallest,
        include_special=special,
    )
    rows = rows_by_hand(world, by, site=site, objective=objective, smallest=smallest, special=special)[:k]
    found = zip(table.column("document").to_pylist(), table.column("position").to_pylist(), strict=True)
    assert list(found) == places(world, rows)
    assert table.column("influence").to_pylist() == world.influence(site, objective)[rows, LATENT].tolist()
    assert table.column("activation").to_pylist() == world.activation[site][rows, LATENT].tolist()
    assert table.column("projection").to_pylist() == world.projection[site, objective][rows, LATENT].tolist()
    assert table.column("mask").to_pylist() == world.mask_N[rows].tolist()
    assert table.column("num_context").to_pylist() == (world.position_N[rows] % 5).tolist()
    assert table.column("rank").to_pylist() == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("by", ["influence", "absolute", "activation"])
def test_segments_that_cannot_hold_a_better_token_are_not_read(
    make_store: "MakeStore", reads: list[str], by: str
) -> None:
    world = make_store.world()
    peaks = world.tokens_of([13, 14])[:3]  # all in the last of five segments
    world.projection[SITE, "next-token"][peaks, LATENT] = 4
    world.activation[SITE][peaks, LATENT] = 16
    store = make_store(world)
    table = rank_tokens(store, latent=LATENT, by=by, k=3)
    assert len(reads) == 1
    assert "segment 4" in reads[0]
    found = zip(table.column("document").to_pylist(), table.column("position").to_pylist(), strict=True)
    assert list(found) == places(world, peaks.tolist())
    reads.clear()
    rank_tokens(store, latent=LATENT, by=by, k=4)
    assert len(reads) > 1


def test_a_tie_in_an_earlier_segment_is_still_found(make_store: "MakeStore", reads: list[str]) -> None:
    world = make_store.world()
    world.activation[SITE][:, LATENT] = 0
    world.projection[SITE, "next-token"][:, LATENT] = 0
    for m, projection in ((1, 2.0), (5, -3.0), (6, 2.0), (14, 2.0)):
        row = world.tokens_of([m])[0]
        world.activation[SITE][row, LATENT] = 1
        world.projection[SITE, "next-token"][row, LATENT] = projection
    table = rank_tokens(make_store(world), latent=LATENT, k=1)
    assert len(reads) == 3  # the bound of the segment of documents 5 and 6 is higher, so it is visited first
    assert table.column("document").to_pylist() == ["doc-01"]


def test_segments_in_which_the_latent_never_fires_are_not_read(make_store: "MakeStore", reads: list[str]) -> None:
    world = make_store.world()
    rows = world.document_N != 9
    world.activation[SITE][rows, LATENT] = 0
    world.projection[SITE, "next-token"][rows, LATENT] = 0
    row = world.tokens_of([9])[0]
    world.activation[SITE][row, LATENT] = 1
    rank_tokens(make_store(world), latent=LATENT, k=None)
    assert len(reads) == 1


def test_nan_scores_that_were_kept_come_last_and_hide_nothing(make_store: "MakeStore") -> None:
    world = make_store.world()
    poisoned = next(row for row in rows_by_hand(world, "influence") if world.document_N[row] == 1)
    store_rows = [row for row in rows_by_hand(world, "influence") if row != poisoned]
    world.projection[SITE, "next-token"][poisoned, LATENT] = np.nan
    store = make_store(world)
    for k, rows in ((5, store_rows[:5]), (None, [*store_rows, poisoned])):
        table = rank_tokens(store, latent=LATENT, k=k)
        found = zip(table.column("document").to_pylist(), table.column("position").to_pylist(), strict=True)
        assert list(found) == places(world, rows)
    assert np.isnan(table.column("influence")[-1].as_py())
    latents = rank_latents(store, k=None)
    assert latents.column("latent")[-1].as_py() == LATENT
    assert not np.isnan(latents.column("score").to_numpy()[:-1]).any()


def test_documents_and_conditions_narrow_the_search(world: "World", store: ScoreStore) -> None:
    keys = [world.keys[m] for m in (0, 5, 9, 13)]
    table = rank_tokens(store, latent=LATENT, k=None, document=keys, where="party=Democratic", **CHOSEN)
    rows = [row for row in rows_by_hand(world, "influence") if world.document_N[row] in (5, 9, 13)]
    found = zip(table.column("document").to_pylist(), table.column("position").to_pylist(), strict=True)
    assert list(found) == places(world, rows)
    query = query_of(table)
    assert (query["num_documents"], query["num_tokens"]) == (3, len(world.tokens_of([5, 9, 13])))
    assert (query["latent"], query["unit"], query["context"]) == (LATENT, "nats", 10)


def test_a_probability_is_weighed_before_tokens_of_different_documents_are_compared(make_store: "MakeStore") -> None:
    world = make_store.world(objective="continuation-prob")
    store = make_store(world)
    for k in (2, None):
        table = rank_tokens(store, latent=LATENT, k=k)
        rows = rows_by_hand(world, "influence", objective="continuation-prob")[:k]
        found = zip(table.column("document").to_pylist(), table.column("position").to_pylist(), strict=True)
        assert list(found) == places(world, rows)
        influence = np.array(table.column("influence"))
        np.testing.assert_allclose(influence, world.influence(SITE, "continuation-prob")[rows, LATENT], rtol=1e-12)
        product = np.array(table.column("activation")) * np.array(table.column("projection"))
        np.testing.assert_allclose(influence, product, rtol=1e-6)


@pytest.mark.parametrize("context", [0, 1, 3, 100])
def test_before_token_and_after_are_the_documents_own_text(world: "World", store: ScoreStore, context: int) -> None:
    table = rank_tokens(store, latent=LATENT, k=None, context=context, include_special=True, **CHOSEN)
    for row in table.to_pylist():
        m = world.keys.index(row["document"])
        words = [world.words[i] for i in np.flatnonzero(world.document_N == m)]
        position = row["position"]
        before = " ".join(words[max(position - context, 1) : position])
        after = " ".join(words[position + 1 : position + 1 + context])
        if position:
            assert row["token"] == words[position]
            assert row["before"] == (before + " " if before else "")
            assert row["after"] == (" " + after if after else "")
        else:
            assert row["token"].startswith("<token ") or int(row["token"].strip("<>")) >= 40
            assert (row["before"], row["after"]) == ("", after)


def test_a_latent_that_never_fires_gives_an_empty_table_with_its_columns(store: ScoreStore) -> None:
    table = rank_tokens(store, latent=7, **CHOSEN)
    assert table.num_rows == 0
    assert [str(table.schema.field(name).type) for name in ("document", "influence", "before")] == [
        "string",
        "double",
        "string",
    ]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"latent": 12}, "got latent 12; expected 0 to 11"),
        ({"by": "frequency"}, "unknown by 'frequency'; .*known: 'influence', 'positive', 'absolute', 'activation'$"),
        ({"context": -1}, "got context = -1; expected 0 or more tokens"),
        ({"k": -3}, "got k = -3"),
        ({"where": "year"}, "cannot read the condition 'year'"),
    ],
)
def test_what_cannot_be_answered_is_refused(store: ScoreStore, question: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        rank_tokens(store, **({"latent": LATENT} | CHOSEN | question))


def test_the_help_offers_the_measures_that_tokens_have_and_no_other() -> None:
    text = gradsae("rank", "tokens", "--help").out
    assert {name for name in SUMS if name in text} == set(TOKEN_VALUES)
