from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of, rank_latents
from gradsae_fast.ranking.tally import RUN_TOKENS
from gradsae_fast.records import SparseScores
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.arrays.site import StoredSite

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE, SIGNED_SITE = "model.layers.3", "model.layers.5"
SUMS = ("influence", "positive", "absolute", "activation", "frequency")
CHOSEN: dict[str, Any] = {"site": SITE, "objective": "next-token"}


def by_hand(
    world: "World", documents: list[int], by: str, *, site: str, objective: str, include_special: bool, smallest: bool
) -> dict[str, list[float]]:
    """The aggregates over dense arrays, sorted with Python's own sort."""
    sums = world.sums(documents, site, objective, include_special=include_special)
    num_tokens = len(world.tokens_of(documents, include_special=include_special))
    fires = [c for c in range(len(sums["influence"])) if sums["num_active"][c]]
    order = sorted(fires, key=lambda c: (sums[by][c] if smallest else -sums[by][c], c))
    columns = {name: values[order].tolist() for name, values in sums.items()}
    per_document = [world.sums([m], site, objective, include_special=include_special)["num_active"] for m in documents]
    return columns | {
        "latent": order,
        "score": columns[by],
        "mean_score": columns[by] if by == "frequency" else [value / num_tokens for value in columns[by]],
        "num_documents": np.count_nonzero(per_document, axis=0)[order].tolist(),
    }


def assert_equals_hand(table: pa.Table, expected: dict[str, list[float]]) -> None:
    assert table.column_names[:2] == ["rank", "latent"]
    assert table.column("rank").to_pylist() == list(range(1, table.num_rows + 1))
    assert set(table.column_names) == {"rank", *expected}
    assert table.column("latent").to_pylist() == expected["latent"][: table.num_rows]
    for name, values in expected.items():
        np.testing.assert_allclose(table.column(name), values[: table.num_rows], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("by", SUMS)
@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
@pytest.mark.parametrize("objective", ["next-token", "entropy"])
@pytest.mark.parametrize("include_special", [None, True])
def test_latents_of_the_corpus_equal_sums_by_hand(
    world: "World", store: ScoreStore, by: str, site: str, objective: str, include_special: bool | None
) -> None:
    everything = list(range(len(world.keys)))
    table = rank_latents(store, by=by, k=None, site=site, objective=objective, include_special=include_special)
    expected = by_hand(
        world, everything, by, site=site, objective=objective, include_special=bool(include_special), smallest=False
    )
    assert_equals_hand(table, expected)


@pytest.mark.parametrize("include_special", [False, True, None])
def test_sums_that_the_store_keeps_with_special_tokens_can_be_asked_without(
    world: "World", special_store: ScoreStore, include_special: bool | None
) -> None:
    counts_special = include_special is not False
    table = rank_latents(special_store, k=None, include_special=include_special, **CHOSEN)
    documents = list(range(len(world.keys)))
    expected = by_hand(world, documents, "influence", **CHOSEN, include_special=counts_special, smallest=False)
    assert_equals_hand(table, expected)
    assert query_of(table)["includes_special"] is counts_special


@pytest.mark.parametrize("include_special", [False, True])
@pytest.mark.parametrize("documents", [[0], [15], [5, 3, 14], [1, 2, 3]])
def test_latents_of_some_documents_are_those_of_their_tokens(
    world: "World", store: ScoreStore, documents: list[int], include_special: bool
) -> None:
    keys = [world.keys[m] for m in documents]
    asked = keys[0] if len(keys) == 1 else keys
    table = rank_latents(store, document=asked, k=None, include_special=include_special, **CHOSEN)
    expected = by_hand(world, documents, "influence", **CHOSEN, include_special=include_special, smallest=False)
    assert_equals_hand(table, expected)
    assert query_of(table)["document"] == keys


def test_long_runs_of_documents_are_summed_piece_by_piece(
    world: "World", store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(world.document_N) < RUN_TOKENS
    whole = rank_latents(store, k=None, include_special=True, **CHOSEN)
    monkeypatch.setattr("gradsae_fast.ranking.tally.RUN_TOKENS", 11)
    assert rank_latents(store, k=None, include_special=True, **CHOSEN) == whole


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_sums_from_tokens_and_stored_sums_are_the_same(
    store: ScoreStore, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rank_latents(store, where="year>=1940", k=None, **CHOSEN)
    monkeypatch.setattr("gradsae_fast.ranking.tally.FEW_TOKENS", share)
    assert rank_latents(store, where="year>=1940", k=None, **CHOSEN) == table


def test_one_document_is_read_from_its_own_tokens_alone(
    world: "World", store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = StoredSite.by_token

    def by_token(self: StoredSite, start: int = 0, stop: int | None = None) -> SparseScores:
        read.append((stop or 0) - start)
        return original(self, start, stop)

    monkeypatch.setattr(StoredSite, "by_token", by_token)
    monkeypatch.setattr("gradsae_fast.ranking.tally.FEW_TOKENS", 1.0)
    rank_latents(store, document="doc-09", **CHOSEN)
    assert read == [np.count_nonzero(world.document_N == 9)]


def test_a_condition_chooses_the_documents(world: "World", store: ScoreStore) -> None:
    table = rank_latents(store, where="party=Republican and year>=1940", k=None, **CHOSEN)
    metadata = world.metadata
    documents = [
        m for m in range(len(world.keys)) if metadata["party"][m] == "Republican" and metadata["year"][m] >= 1940
    ]
    assert 0 < len(documents) < 4
    assert_equals_hand(table, by_hand(world, documents, "influence", **CHOSEN, include_special=False, smallest=False))
    assert query_of(table)["num_documents"] == len(documents)
    assert query_of(table)["num_tokens"] == len(world.tokens_of(documents))


def test_documents_and_condition_together_must_both_hold(world: "World", store: ScoreStore) -> None:
    table = rank_latents(store, document=world.keys[:8], where="party=Democratic", k=None, **CHOSEN)
    assert_equals_hand(table, by_hand(world, [1, 5], "influence", **CHOSEN, include_special=False, smallest=False))


def test_the_smallest_come_in_plain_ascending_order(world: "World", store: ScoreStore) -> None:
    table = rank_latents(store, smallest=True, k=3, **CHOSEN)
    everything = list(range(len(world.keys)))
    expected = by_hand(world, everything, "influence", **CHOSEN, include_special=False, smallest=True)
    assert table.num_rows == 3
    assert_equals_hand(table, expected)
    assert table.column("score")[0].as_py() < 0


def test_ties_go_to_the_smaller_latent(make_store: "MakeStore") -> None:
    world = make_store.world()
    world.activation[SITE][:] = 0
    world.projection[SITE, "next-token"][:] = 0
    first = int(world.tokens_of([0])[0])
    world.activation[SITE][first, [9, 2, 5]] = 1
    world.projection[SITE, "next-token"][first, [9, 2, 5]] = [0.5, 0.5, 0.75]
    store = make_store(world)
    assert rank_latents(store).column("latent").to_pylist() == [5, 2, 9]
    assert rank_latents(store, smallest=True).column("latent").to_pylist() == [2, 9, 5]
    assert rank_latents(store, by="frequency").column("latent").to_pylist() == [2, 5, 9]


def test_latents_that_never_fire_on_counted_tokens_are_not_listed(store: ScoreStore) -> None:
    assert not {7, 8} & set(rank_latents(store, k=None, **CHOSEN).column("latent").to_pylist())
    with_special = set(rank_latents(store, k=None, include_special=True, **CHOSEN).column("latent").to_pylist())
    assert 8 in with_special
    assert 7 not in with_special


def test_duckdb_finds_the_same_sums(world: "World", store: ScoreStore) -> None:
    token, latent = np.nonzero(world.activation[SITE])
    postings = pa.table(
        {
            "document": world.document_N[token],
            "latent": latent,
            "mask": world.mask_N[token],
            "a": world.activation[SITE][token, latent],
            "p": world.projection[SITE, "next-token"][token, latent],
        }
    )
    documents = pa.table({"document": np.arange(len(world.keys)), "year": world.metadata["year"]})
    with duckdb.connect() as connection:
        connection.register("postings", postings)
        connection.register("documents", documents)
        expected = connection.execute(
            "select latent, sum(a * p), sum(abs(a * p)), max(a * p), count(*), count(distinct document) "
            "from postings join documents using (document) where mask = 0 and year >= 1940 "
            "group by latent order by sum(a * p) desc, latent limit 8"
        ).fetchall()
    table = rank_latents(store, where="year>=1940", k=8, **CHOSEN)
    names = ["latent", "score", "absolute", "max_influence", "num_active", "num_documents"]
    assert [tuple(row.values()) for row in table.select(names).to_pylist()] == expected


def test_a_probability_is_the_log_gradient_times_the_documents_own_probability(make_store: "MakeStore") -> None:
    world = make_store.world(objective="continuation-prob")
    store = make_store(world)
    documents = list(range(len(world.keys)))
    for include_special in (False, True):
        table = rank_latents(store, k=None, include_special=include_special)
        expected = by_hand(
            world,
            documents,
            "influence",
            site=SITE,
            objective="continuation-prob",
            include_special=include_special,
            smallest=False,
        )
        assert_equals_hand(table, expected)
    assert query_of(table)["unit"] == "probability"


def test_the_table_says_what_its_numbers_mean(world: "World", store: ScoreStore) -> None:
    query = query_of(rank_latents(store, by="absolute", site=SIGNED_SITE, objective="entropy"))
    run = query.pop("run")
    assert len(run) == 16
    assert query == {
        "ranking": "latents",
        "site": SIGNED_SITE,
        "objective": "entropy",
        "by": "absolute",
        "unit": "nats",
        "influence_unit": "nats",
        "sign": "positive: the latent's presence raises the objective; negative: it lowers it",
        "includes_special": False,
        "num_documents": len({world.document_N[row] for row in np.flatnonzero(world.counted())}),
        "num_tokens": int(np.count_nonzero(world.mask_N == 0)),
        "k": 20,
        "smallest": False,
    }


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"by": "activatoin"}, r"unknown by 'activatoin'; did you mean 'activation'\? known: 'influence', 'positive'"),
        ({"k": 0}, "got k = 0; expected 1 or more, or None for all"),
        ({"site": "model.layers.4"}, r"unknown site 'model.layers.4'; did you mean 'model.layers.[35]'"),
        ({"site": None}, "the store has 2 sites; say which with site=: 'model.layers.3', 'model.layers.5'"),
        ({"objective": None}, "the store has 2 objectives; say which with objective=: 'next-token', 'entropy'"),
        ({"objective": "next_token"}, r"unknown objective 'next_token'; did you mean 'next-token'\?"),
        ({"document": "doc-99"}, r"no committed document has the key 'doc-99'; did you mean 'doc-0[0-9]'"),
        ({"document": []}, "got an empty list of documents"),
        ({"where": "partie=Republican"}, r"no document has a metadata column 'partie'; did you mean 'party'\?"),
        ({"where": "colour=red"}, "metadata column 'colour'; known: 'party', 'revised', 'score'"),
        ({"where": "party=Republcan"}, r"no chosen document meets .* is never 'Republcan': did you mean 'Republican'"),
        ({"where": "year>3000"}, "no chosen document meets 'year>3000'"),
        ({"where": "year>late"}, "'year' holds numbers; got 'late'"),
        ({"document": "doc-02"}, "no counted token"),
    ],
)
def test_what_the_store_cannot_answer_is_refused_with_what_it_can(
    store: ScoreStore, question: dict[str, Any], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        rank_latents(store, **(CHOSEN | question))


def test_a_store_without_a_committed_segment_is_refused(make_store: "MakeStore") -> None:
    with pytest.raises(QueryError, match="no committed segment; expected at least one; run the extraction again"):
        rank_latents(make_store.empty())


def test_looking_up_a_document_reads_no_text(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise AssertionError("a document table was read whole")

    monkeypatch.setattr("gradsae_fast.store.segment.StoredSegment.documents", refuse)
    assert rank_latents(store, document="doc-09", where="year>=0", **CHOSEN).num_rows
