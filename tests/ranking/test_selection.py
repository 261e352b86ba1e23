import dataclasses
from typing import TYPE_CHECKING

import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.store import ScoreStore

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World


def chosen(selection: Selection) -> list[str]:
    return [segment.document_keys()[slot] for segment, slots in selection for slot in slots]


def test_without_a_question_every_document_is_chosen_in_order(world: "World", store: ScoreStore) -> None:
    assert chosen(select(store)) == world.keys


def test_keys_are_found_in_any_segment_and_segments_without_any_are_left_out(store: ScoreStore) -> None:
    selection = select(store, document=["doc-12", "doc-01", "doc-12"])
    assert chosen(selection) == ["doc-01", "doc-12"]
    assert [segment.index for segment, _ in selection] == [0, 3]


@pytest.mark.parametrize("where", ["weight>=3", "weight<3", "weight!=2.0"])
def test_a_column_of_numbers_is_one_also_where_a_segment_has_only_missing_values(
    world: "World", store: ScoreStore, where: str
) -> None:
    assert world.metadata["weight"][7] is None  # the only document of its segment
    tests = {
        "weight>=3": lambda weight: weight is not None and weight >= 3,
        "weight<3": lambda weight: weight is not None and weight < 3,
        "weight!=2.0": lambda weight: weight != 2,
    }
    expected = [key for key, weight in zip(world.keys, world.metadata["weight"], strict=True) if tests[where](weight)]
    assert chosen(select(store, where=where)) == expected


def test_a_column_that_only_some_segments_have_is_missing_in_the_others(make_store: "MakeStore") -> None:
    world = make_store.world()
    segments = make_store.segments(world)
    bare = dataclasses.replace(segments[1], documents=dataclasses.replace(segments[1].documents, metadata={}))
    store = make_store.from_segments([segments[0], bare, *segments[2:]])
    rows = list(zip(world.keys, world.metadata["party"], strict=True))
    expected = [key for m, (key, party) in enumerate(rows) if party == "Republican" and m not in (4, 5, 6)]
    assert chosen(select(store, where="party=Republican")) == expected
    assert set(chosen(select(store, where="party!=Republican"))) == set(world.keys) - set(expected)


def test_booleans_and_other_values_are_compared_as_they_are_written(store: ScoreStore) -> None:
    assert chosen(select(store, where="revised=true, score=s4")) == ["doc-04"]


def test_the_first_unknown_key_is_named(store: ScoreStore) -> None:
    with pytest.raises(QueryError, match=r"no committed document has the key 'doc-7'; did you mean 'doc-07'"):
        select(store, document=["doc-01", "doc-7"])
