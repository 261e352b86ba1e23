from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import contrast, query_of
from gradsae_fast.ranking.groups.every_group import contrast_groups
from gradsae_fast.store import ScoreStore

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

CHOSEN: dict[str, Any] = {"site": "model.layers.3", "objective": "next-token"}


@pytest.mark.parametrize("order", ["a", "auroc", "p"])
@pytest.mark.parametrize(("column", "by"), [("party", "influence"), ("year", "activation"), ("revised", "frequency")])
def test_a_group_is_contrasted_with_all_other_documents(
    world: "World", store: ScoreStore, column: str, by: str, order: str
) -> None:
    table = contrast_groups(store, column=column, by=by, order=order, k=3, **CHOSEN).to_pandas()
    values = sorted({str(value).lower() if column == "revised" else str(value) for value in world.metadata[column]})
    assert table["group"].drop_duplicates().tolist() == values
    for value in values:
        alone = contrast(store, a=f"{column}='{value}'", by=by, order=order, k=3, **CHOSEN).to_pandas()
        rows = table[table["group"] == value].drop(columns="group").reset_index(drop=True)
        assert rows["rank"].tolist() == [1, 2, 3]
        same = [name for name in alone.columns if name != "q"]
        np.testing.assert_allclose(rows[same], alone[same], rtol=1e-9)
        assert rows.columns.tolist() == alone.columns.tolist()


def test_q_is_corrected_for_the_latents_of_all_groups(store: ScoreStore) -> None:
    table = contrast_groups(store, column="party", k=None, **CHOSEN)
    p = table.column("p").to_numpy()
    np.testing.assert_allclose(table.column("q"), scipy.stats.false_discovery_control(p), rtol=1e-12)
    assert query_of(table)["num_compared"] == len(p) == len(table)


def test_documents_without_a_value_are_among_the_others_of_every_group(world: "World", store: ScoreStore) -> None:
    table = contrast_groups(store, column="weight", k=1, **CHOSEN)
    query = query_of(table)
    assert list(query["groups"]) == [
        str(value) for value in sorted(w for w in world.metadata["weight"] if w is not None)
    ]
    assert query["groups"]["1.0"] == 0  # its only document is empty
    assert "1.0" not in table.column("group").to_pylist()
    counted = {int(m) for m in world.document_N[world.counted()]}
    assert query["num_documents"] == len(counted) > sum(query["groups"].values())
    assert query["num_tokens"] == int(world.counted().sum())
    assert (query["ranking"], query["column"], query["order"]) == ("groups", "weight", "a")


def test_numbers_are_in_order_of_size_and_equal_ones_are_one_group(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(3, 3))
    world.metadata["party"] = [10, 9, 9, 9.0, float("nan"), 10]
    query = query_of(contrast_groups(make_store(world), column="party"))
    assert list(query["groups"]) == ["9", "10"]


def test_values_of_any_json_kind_are_groups(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(3, 3))
    world.metadata["party"] = [["a", 1], True, "true", ["a", 1], {"b": None}, "\ud800"]
    table = contrast_groups(make_store(world), column="party", k=1)
    assert set(table.column("group").to_pylist()) == {'["a", 1]', "true", '{"b": null}', "?"}


def test_values_of_any_length_and_letter_name_their_groups(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(3, 3))
    hostile = ["<script>", "zero\0", "x" * 3_000_000]
    world.metadata["party"] = hostile * 2
    table = contrast_groups(make_store(world), column="party", k=2)
    assert table.column("group").to_pylist()[::2] == sorted(hostile)
    assert list(query_of(table)["groups"]) == sorted(hostile)


def test_groups_of_one_document_each_have_no_order_by_spread(store: ScoreStore) -> None:
    table = contrast_groups(store, column="key", k=1, **CHOSEN)
    assert np.isnan(table.column("p").to_numpy()).all()
    for order in ("effect_size", "p", "q"):
        with pytest.raises(QueryError, match=f"every group of 'key' has one document .* the order '{order}' needs"):
            contrast_groups(store, column="key", order=order, **CHOSEN)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"column": "parti"}, "no document has a metadata column 'parti'; did you mean 'party'"),
        ({"column": "party", "order": "size"}, "unknown order 'size'"),
        ({"column": "party", "k": 0}, "got k = 0"),
        ({"column": "party", "by": "mean"}, "unknown by 'mean'"),
    ],
)
def test_what_cannot_be_grouped_is_refused(store: ScoreStore, question: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        contrast_groups(store, **(CHOSEN | question))


def test_a_column_with_too_many_no_or_one_value_is_refused(make_store: "MakeStore") -> None:
    cases: list[tuple[list[Any], str]] = [
        (list(range(51)), "'party' has 51 values; expected 1 to 50, a group for each; choose another column"),
        ([None] * 51, "'party' has 0 values"),
        (["x"] * 51, "every document with a counted token has party = 'x': there is nothing to compare with"),
        ([None, None, "x", *[None] * 48], "no document with a value of 'party' has a counted token"),  # the empty one
    ]
    for values, message in cases:
        world = make_store.world(segment_documents=(51,))
        world.metadata["party"] = values
        with pytest.raises(QueryError, match=message):
            contrast_groups(make_store(world), column="party")
