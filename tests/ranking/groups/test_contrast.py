import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import contrast, query_of
from gradsae_fast.ranking.groups import evidence
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
    welch = scipy.stats.ttest_ind(a[:, latents], b[:, latents], equal_var=False)
    expected = {
        "difference": difference[latents],
        "mean_a": a.mean(0)[latents],
        "mean_b": b.mean(0)[latents],
        "effect_size": (difference[latents] / pooled[latents]),
        "t": welch.statistic,
        "p": welch.pvalue,
        "q": scipy.stats.false_discovery_control(welch.pvalue),
        "auroc": scipy.stats.mannwhitneyu(a[:, latents], b[:, latents], axis=0).statistic / (len(a) * len(b)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table.column(name), values, rtol=1e-9, atol=1e-14, err_msg=name)
    assert query_of(table)["num_compared"] == len(latents)
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
        ("p", "p", -1),
        ("q", "q", -1),
        ("auroc", "auroc", 0),
    ],
)
def test_the_order_is_the_one_asked_for(store: ScoreStore, order: str, column: str, sign: int) -> None:
    everything = contrast(store, **GROUPS, k=None, order=order, **CHOSEN)
    values = everything.column(column).to_numpy() - (0.5 if column == "auroc" else 0)
    values = values * sign if sign else abs(values)
    np.testing.assert_array_equal(values, np.sort(values)[::-1])
    first = contrast(store, **GROUPS, k=4, order=order, **CHOSEN)
    assert first.equals(everything.slice(0, 4))


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
    for order in ("effect_size", "p", "q"):
        with pytest.raises(QueryError, match=rf"group a \(score=s5\) has one document .* order '{order}' needs"):
            contrast(store, a="score=s5", b="party=Republican", order=order, **CHOSEN)


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


def test_without_a_second_group_all_other_documents_are_compared(world: "World", store: ScoreStore) -> None:
    table = contrast(store, a="party=Republican", k=None, **CHOSEN)
    explicit = contrast(store, a="party=Republican", b="party!=Republican", k=None, **CHOSEN)
    assert table.equals(explicit)
    query = query_of(table)
    assert query["b"] == "not (party=Republican)"
    assert query["num_documents_a"] + query["num_documents_b"] == len(set(world.document_N[world.counted()].tolist()))


def test_groups_that_overlap_have_means_but_no_test(store: ScoreStore) -> None:
    table = contrast(store, a="party=Republican", b="year>=1940", k=None, **CHOSEN)
    assert query_of(table)["num_compared"] == 0
    for name in ("p", "q", "auroc"):
        assert np.isnan(table.column(name).to_numpy()).all()
    assert np.isfinite(table.column("difference").to_numpy()).all()


def test_groups_that_meet_in_a_document_without_counted_tokens_do_not_overlap(store: ScoreStore) -> None:
    table = contrast(store, a="key=doc-02 or party=Republican", b="key=doc-02 or party=Democratic", k=None, **CHOSEN)
    assert query_of(table)["num_documents_both"] == 0
    assert table.equals(contrast(store, **GROUPS, k=None, **CHOSEN))


@pytest.mark.parametrize("by", ["influence", "activation"])
def test_a_permutation_test_equals_scipys_over_all_relabellings(world: "World", store: ScoreStore, by: str) -> None:
    chosen: dict[str, Any] = {"site": SIGNED_SITE, "objective": "next-token", "include_special": False}
    table = contrast(store, **GROUPS, by=by, k=None, permutations=10_000, **chosen)
    a, b = (samples(world, members(world, party), by, **chosen) for party in ("Republican", "Democratic"))
    latents = table.column("latent").to_numpy()
    exact = scipy.stats.permutation_test(
        (a[:, latents], b[:, latents]),
        lambda x, y, axis: abs(x.mean(axis) - y.mean(axis)),
        n_resamples=10_000,
        alternative="greater",
        vectorized=True,
    )
    np.testing.assert_allclose(table.column("p_permutation"), exact.pvalue, rtol=1e-12)
    query = query_of(table)
    assert query["permutations"] == math.comb(len(a) + len(b), len(a)) - 1
    assert "seed" not in query
    first = contrast(store, **GROUPS, by=by, k=2, permutations=10_000, **chosen)
    assert first.column("p_max").to_pylist() == table.column("p_max").to_pylist()[:2]  # of all latents, not those shown


def test_drawn_relabellings_depend_on_the_seed_alone(store: ScoreStore) -> None:
    there, again, other = (contrast(store, **GROUPS, permutations=20, seed=seed, **CHOSEN) for seed in (1, 1, 2))
    assert there.equals(again)
    assert there.column("p_permutation") != other.column("p_permutation")
    assert (query_of(there)["permutations"], query_of(there)["seed"]) == (20, 1)
    assert "p_permutation" not in contrast(store, **GROUPS, **CHOSEN).column_names


def test_a_group_of_one_can_be_dealt_to_every_document(store: ScoreStore) -> None:
    table = contrast(store, a="score=s5", permutations=1000, **CHOSEN)
    query = query_of(table)
    assert query["permutations"] == query["num_documents_b"]
    assert min(table.column("p_permutation").to_pylist()) >= 1 / (1 + query["num_documents_b"])
    assert np.isnan(table.column("p").to_numpy()).all()
    assert np.isfinite(table.column("auroc").to_numpy()).all()


def test_samples_that_do_not_fit_into_memory_are_read_again_with_the_same_answer(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[dict[str, Any]] = [{"k": 3}, {"k": None, "permutations": 30}, {"order": "auroc"}]
    whole = [contrast(store, **GROUPS, **CHOSEN, **question) for question in questions]
    for limit in (1, 9, 40):
        monkeypatch.setattr(evidence, "MAX_PAIRS", 0)
        monkeypatch.setattr(evidence, "_PAIRS_READ", limit)
        assert [contrast(store, **GROUPS, **CHOSEN, **question) for question in questions] == whole
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "_PAIRS_OF_BLOCK", 7)
    assert [contrast(store, **GROUPS, **CHOSEN, **question) for question in questions] == whole


def test_equal_samples_do_not_pass_for_the_largest_difference_of_all_latents(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(16,))
    world.mask_N[:] = np.where(world.position_N < 3, 0, 1)  # three counted tokens each: means of thirds, inexact
    first = world.position_N == 1
    world.activation[SITE][:] = world.projection[SITE, "next-token"][:] = 0
    world.activation[SITE][first] = 1
    world.projection[SITE, "next-token"][first] = np.arange(79, 79 + 12 * 3, 3) / 1024
    world.projection[SITE, "next-token"][first & np.isin(world.document_N, members(world, "Republican")), 5] = 64
    table = contrast(make_store(world), a="party=Republican", k=None, permutations=10_000).to_pandas()
    expected = np.ones((12, 2))
    expected[0] = 1 / math.comb(4 + 11, 4)
    assert table["latent"][0] == 5
    np.testing.assert_allclose(table[["p_permutation", "p_max"]], expected, rtol=1e-12)


@pytest.mark.parametrize("values", [[np.inf], [-np.inf], [np.inf, -np.inf]])
def test_a_sum_that_is_infinite_is_no_number_and_no_warning(make_store: "MakeStore", values: list[float]) -> None:
    world = make_store.world()
    tokens = np.flatnonzero(np.isin(world.document_N, members(world, "Republican")) & world.counted())
    rows = tokens[world.activation[SITE][tokens, 4] > 0][: len(values)]
    world.projection[SITE, "next-token"][rows, 4] = values
    table = contrast(make_store(world), **GROUPS, k=None, permutations=30).to_pandas()
    for name in ("difference", "mean_a", "effect_size", "t", "p", "q", "auroc", "p_permutation", "p_max"):
        assert table["latent"][table[name].isna()].tolist() == [4], name


def test_a_document_that_is_not_a_number_leaves_its_latents_without_statistics(make_store: "MakeStore") -> None:
    world = make_store.world(objective="continuation-prob")
    quarantined = members(world, "Republican")[0]
    world.objective_values["continuation-prob"][quarantined] = np.nan
    world.activation[SITE][np.ix_(world.document_N == quarantined, [1, 4, 5])] = 0
    world.projection[SITE, "continuation-prob"][np.ix_(world.document_N == quarantined, [1, 4, 5])] = 0
    table = contrast(make_store(world), **GROUPS, k=None, permutations=30)
    sums = world.sums([quarantined], SITE, "continuation-prob")
    latents = table.column("latent").to_numpy()
    unknown = sums["num_active"][latents] > 0
    assert 0 < unknown.sum() < len(latents)
    for name in ("difference", "mean_a", "effect_size", "t", "p", "q", "auroc", "p_permutation", "p_max"):
        np.testing.assert_array_equal(np.isnan(table.column(name).to_numpy()), unknown, err_msg=name)
    assert not np.isnan(table.column("mean_b").to_numpy()).any()
    assert unknown.tolist() == sorted(unknown)  # last
    assert query_of(table)["num_compared"] == len(latents) - unknown.sum()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"a": "party=Whig"}, "no chosen document meets 'party=Whig'"),
        ({"a": "score=s2"}, r"group a \(score=s2\) has no document with a counted token"),
        ({"b": "nation=x"}, "no document has a metadata column 'nation'"),
        ({"b": "party=Democratic or (year>1"}, r"cannot read the condition .* from its end on"),
        ({"a": "party exists", "b": None}, r"group b \(not \(party exists\)\) has no document with a counted token"),
        ({"order": "t"}, "unknown order 't'; known: 'difference', 'effect_size', 'a', 'b', 'p', 'q', 'auroc'"),
        ({"permutations": -1}, r"got permutations = -1; expected 0 \(no permutation test\) or more"),
        ({"seed": -1}, "got seed = -1; expected 0 or more"),
        ({"seed": 1}, "got seed = 1 without permutations"),
        (
            {"permutations": 10, "b": "year>=1900"},
            "documents are in both groups, for which a permutation test makes no",
        ),
        ({"order": "p", "b": "year>=1900"}, "for which the order 'p' makes no sense; leave them out of one: b = "),
        ({"by": "mean"}, "unknown by 'mean'"),
        ({"k": 0}, "got k = 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(store: ScoreStore, question: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        contrast(store, **(GROUPS | CHOSEN | question))
