import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import contrast, query_of
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE, SIGNED_SITE = "model.layers.3", "model.layers.5"
CHOSEN: dict[str, Any] = {"site": SITE, "objective": "next-token"}
GROUPS: dict[str, Any] = {"a": "party=Republican", "b": "party=Democratic"}


def members(world: "World", party: str) -> list[int]:
    counted = set(world.document_N[world.counted()].tolist())
    return [m for m, name in enumerate(world.metadata["party"]) if name == party and m in counted]


def samples(
    world: "World", documents: list[int], by: str, *, site: str, objective: str, include_special: bool
) -> Array:
    """Each document's mean over its counted tokens, float64 [documents, C]."""
    rows = []
    for m in documents:
        sums = world.sums([m], site, objective, include_special=include_special)
        num_tokens = len(world.tokens_of([m], include_special=include_special))
        rows.append(sums["num_active" if by == "frequency" else by] / num_tokens)
    return np.array(rows)


@pytest.mark.parametrize("by", ["influence", "positive", "absolute", "activation", "frequency"])
@pytest.mark.parametrize(("site", "objective"), [(SITE, "next-token"), (SIGNED_SITE, "entropy")])
@pytest.mark.parametrize("include_special", [False, True])
def test_a_contrast_equals_numpy_and_scipy_over_the_documents_means(
    world: "World", store: ScoreStore, by: str, site: str, objective: str, include_special: bool
) -> None:
    table = contrast(store, **GROUPS, by=by, k=None, site=site, objective=objective, include_special=include_special)
    chosen: dict[str, Any] = {"site": site, "objective": objective, "include_special": include_special}
    a = samples(world, members(world, "Republican"), by, **chosen)
    b = samples(world, members(world, "Democratic"), by, **chosen)
    latents = table.column("latent").to_numpy()
    assert sorted(latents) == np.flatnonzero((a != 0).any(0) | (b != 0).any(0)).tolist() or by in (
        "influence",
        "positive",
    )
    difference = a.mean(0) - b.mean(0)
    pooled = np.sqrt(((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / (len(a) + len(b) - 2))
    expected = {
        "difference": difference[latents],
        "mean_a": a.mean(0)[latents],
        "mean_b": b.mean(0)[latents],
        "effect_size": (difference[latents] / pooled[latents]),
        "t": scipy.stats.ttest_ind(a[:, latents], b[:, latents], equal_var=False).statistic,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table.column(name), values, rtol=1e-9, atol=1e-14, err_msg=name)
    assert (
        abs(np.array(table.column("difference"))).tolist() == sorted(abs(table.column("difference").to_numpy()))[::-1]
    )


def test_active_documents_are_counted_in_each_group(world: "World", store: ScoreStore) -> None:
    table = contrast(store, **GROUPS, k=None, **CHOSEN)
    for name, party in (("a", "Republican"), ("b", "Democratic")):
        fires = [world.sums([m], SITE, "next-token")["num_active"] > 0 for m in members(world, party)]
        expected = np.sum(fires, axis=0)[table.column("latent").to_numpy()]
        assert table.column(f"num_active_documents_{name}").to_pylist() == expected.tolist()


@pytest.mark.parametrize(
    ("order", "column", "sign"),
    [
        ("difference", "difference", 0),
        ("effect_size", "effect_size", 0),
        ("a", "difference", 1),
        ("b", "difference", -1),
    ],
)
def test_the_order_is_the_one_asked_for(store: ScoreStore, order: str, column: str, sign: int) -> None:
    everything = contrast(store, **GROUPS, k=None, order=order, **CHOSEN)
    values = everything.column(column).to_numpy() * sign if sign else abs(everything.column(column).to_numpy())
    np.testing.assert_array_equal(values, np.sort(values)[::-1])
    first = contrast(store, **GROUPS, k=4, order=order, **CHOSEN)
    assert first.column("latent").to_pylist() == everything.column("latent").to_pylist()[:4]


def test_swapped_groups_turn_every_sign(store: ScoreStore) -> None:
    there = contrast(store, **GROUPS, k=None, **CHOSEN)
    back = contrast(store, a=GROUPS["b"], b=GROUPS["a"], k=None, **CHOSEN)
    assert there.column("latent") == back.column("latent")
    for name in ("difference", "effect_size", "t"):
        np.testing.assert_array_equal(there.column(name).to_numpy(), -back.column(name).to_numpy())


def test_a_group_of_one_has_means_but_no_spread(world: "World", store: ScoreStore) -> None:
    table = contrast(store, a="score=s5", b="party=Republican", k=None, **CHOSEN)
    assert all(math.isnan(value) for name in ("t", "effect_size") for value in table.column(name).to_pylist())
    alone = samples(world, [5], "influence", **CHOSEN, include_special=False)[0]
    assert table.column("mean_a").to_pylist() == alone[table.column("latent").to_numpy()].tolist()
    by_effect = contrast(store, a="score=s5", b="party=Republican", k=None, order="effect_size", **CHOSEN)
    assert by_effect.column("latent").to_pylist() == sorted(by_effect.column("latent").to_pylist())


def test_equal_samples_have_no_effect_size_instead_of_a_huge_one(make_store: "MakeStore") -> None:
    world = make_store.world()
    world.mask_N[:] = np.where(world.position_N < 3, 0, 1)  # three counted tokens each: means of thirds, inexact
    world.activation[SITE][:] = 0
    world.projection[SITE, "next-token"][:] = 0
    republican = np.isin(world.document_N, members(world, "Republican"))
    world.activation[SITE][world.position_N == 1, 3] = 1
    world.projection[SITE, "next-token"][world.position_N == 1, 3] = 0.1
    world.projection[SITE, "next-token"][(world.position_N == 1) & republican, 3] = 0.7
    row = contrast(make_store(world), **GROUPS).to_pylist()[0]
    assert row["latent"] == 3
    assert row["difference"] == pytest.approx(0.2, rel=1e-3)
    assert math.isnan(row["t"])
    assert math.isnan(row["effect_size"])


def test_groups_may_overlap_and_the_table_says_so(world: "World", store: ScoreStore) -> None:
    query = query_of(contrast(store, a="party=Republican", b="year>=1940", **CHOSEN))
    late = {m for m in members(world, "Republican") if world.metadata["year"][m] >= 1940}
    assert query["num_documents_both"] == len(late) > 0
    assert query["num_documents_a"] == len(members(world, "Republican"))
    assert query["num_tokens_a"] == len(world.tokens_of(members(world, "Republican")))
    assert (query["a"], query["b"], query["order"]) == ("party=Republican", "year>=1940", "difference")
    assert query["unit"] == "nats per scored token"


def test_an_empty_document_is_no_sample(world: "World", store: ScoreStore) -> None:
    assert world.metadata["party"][2] == "none"
    query = query_of(contrast(store, a="party=none", b="party=Republican", **CHOSEN))
    assert query["num_documents_a"] == world.metadata["party"].count("none") - 1


def test_probabilities_are_compared_as_probabilities(make_store: "MakeStore") -> None:
    world = make_store.world(objective="continuation-prob")
    chosen: dict[str, Any] = {"site": SITE, "objective": "continuation-prob", "include_special": False}
    table = contrast(make_store(world), **GROUPS, k=None)
    a = samples(world, members(world, "Republican"), "influence", **chosen)
    np.testing.assert_allclose(
        table.column("mean_a"), a.mean(0)[table.column("latent").to_numpy()], rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"a": "party=Whig"}, "no chosen document meets 'party=Whig'"),
        ({"a": "score=s2"}, r"group a \(score=s2\) has no document with a counted token"),
        ({"b": "nation=x"}, "no document has a metadata column 'nation'"),
        ({"order": "t"}, "unknown order 't'; known: 'difference', 'effect_size', 'a', 'b'"),
        ({"by": "mean"}, "unknown by 'mean'"),
        ({"k": 0}, "got k = 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(store: ScoreStore, question: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        contrast(store, **(GROUPS | CHOSEN | question))
