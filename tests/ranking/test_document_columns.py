import dataclasses
from typing import TYPE_CHECKING

import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.document_columns import read_columns
from gradsae_fast.ranking.selection import select
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.segment import StoredSegment

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World


def chosen(store: ScoreStore, where: str) -> list[str]:
    return [segment.document_keys()[slot] for segment, slots in select(store, where=where) for slot in slots]


def test_columns_come_in_the_order_of_the_corpus(world: "World", store: ScoreStore) -> None:
    assert read_columns(store, ["weight", "tags"]) == {name: world.metadata[name] for name in ("weight", "tags")}


def test_key_and_counted_tokens_are_columns_of_every_document(world: "World", store: ScoreStore) -> None:
    lengths = [len(world.tokens_of([m])) for m in range(len(world.keys))]
    expected = [key for key, length in zip(world.keys, lengths, strict=True) if length >= 5]
    assert 0 < len(expected) < len(world.keys)
    assert chosen(store, "num_tokens >= 5") == chosen(store, "document.num_tokens >= 5") == expected
    assert chosen(store, "key in (doc-03, doc-11) or key ~ 12") == ["doc-03", "doc-11", "doc-12"]


def test_only_the_columns_that_a_condition_names_are_read(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = set[str]()
    real = StoredSegment._read

    def spy(segment: StoredSegment, path: str) -> Array:
        read.add(path.split("/")[-2])
        return real(segment, path)

    monkeypatch.setattr(StoredSegment, "_read", spy)
    assert chosen(store, "year>1900 or not party=none")
    assert read - {"key"} == {"year", "party"}


def test_metadata_of_the_same_name_is_found_first(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(2, 2))
    world.metadata["key"] = ["d", "c", "b", "a"]
    store = make_store(world)
    assert chosen(store, "key=a") == ["doc-03"]
    assert chosen(store, "document.key=doc-01") == ["doc-01"]


def test_a_column_of_one_segment_is_missing_in_the_others(make_store: "MakeStore") -> None:
    world = make_store.world(segment_documents=(2, 1, 2))
    segments = make_store.segments(world)
    bare = dataclasses.replace(segments[1], documents=dataclasses.replace(segments[1].documents, metadata={}))
    store = make_store.from_segments([segments[0], bare, segments[2]])
    assert read_columns(store, ["party"])["party"][2] is None
    assert chosen(store, "party not exists") == ["doc-02"]


def test_conditions_of_all_kinds_choose_documents(world: "World", store: ScoreStore) -> None:
    where = "not (party in (Republican, none) or year < 1940) and score ~ 1"
    rows = zip(world.keys, world.metadata["party"], world.metadata["year"], world.metadata["score"], strict=True)
    expected = [
        key for key, party, year, score in rows if party not in ("Republican", "none") and year >= 1940 and "1" in score
    ]
    assert expected
    assert chosen(store, where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("parti=Republican", "no document has a metadata column 'parti'; did you mean 'party'"),
        ("party=none or not num_token>3", "column 'num_token'; did you mean 'num_tokens'"),
        ("document.year=3", "no document has a metadata column 'document.year'"),
        ("party=Republicn", "'party=Republicn'; party is never 'Republicn': did you mean 'Republican'"),
        ("party in (Wigh, Democratc) and year>1", "never 'Wigh': known: .*; party is never 'Democratc': did you"),
        ("year in (1, 2)", "year is never '1'"),
        ("revised=maybe", "revised is never 'maybe': known: 'false', 'true'"),
        ("party=Republican and not party exists", "loosen it"),
        ("year>soon", "'year' holds numbers; got 'soon'"),
    ],
)  # fmt: skip
def test_what_chooses_nothing_says_why(store: ScoreStore, where: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        select(store, where=where)
