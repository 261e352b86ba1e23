import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.export import parquet, write_parquet
from gradsae_fast.ranking import query_of, rank_latents, rank_tokens
from gradsae_fast.ranking.answer import identity_digest
from gradsae_fast.store import ScoreStore
from tests.export.conftest import ASKED, HOSTILE, OBJECTIVE, SIGNED_SITE, SITE
from tests.ranking.conftest import World


def query(sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def path(store: ScoreStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(store, tmp_path_factory.mktemp("parquet") / "scores.parquet", **ASKED).path


def test_duckdb_finds_the_top_latents_that_the_ranking_finds(store: ScoreStore, path: Path) -> None:
    ranked = rank_latents(store, k=5, **ASKED).select(["latent", "score", "num_active", "num_documents"]).to_pylist()
    rows = query(
        f"""select latent, sum(influence), count(*), count(distinct document_index) from '{path}'
        group by latent order by sum(influence) desc, latent limit 5"""
    )
    assert rows == [tuple(row.values()) for row in ranked]


def test_polars_finds_the_top_tokens_that_the_ranking_finds(store: ScoreStore, path: Path) -> None:
    ranked = rank_tokens(store, latent=3, k=4, **ASKED).select(["document", "position", "influence", "activation"])
    frame = pl.read_parquet(path).filter(pl.col("latent") == 3).sort("influence", descending=True, maintain_order=True)
    found = frame.head(4).select(pl.col("document").cast(pl.String), "position", "influence", "activation")
    assert found.rows() == [tuple(row.values()) for row in ranked.to_pylist()]


def test_the_rows_are_exactly_the_non_zeros_of_counted_tokens(world: World, path: Path) -> None:
    table = pq.read_table(path).to_pydict()
    active_NC = (world.activation[SITE] != 0) & world.counted()[:, None]
    token, latent = np.nonzero(active_NC)
    assert table["latent"] == latent.tolist()
    assert table["document"] == [world.keys[m] for m in world.document_N[token]]
    assert table["document_index"] == world.document_N[token].tolist()
    assert table["position"] == world.position_N[token].tolist()
    assert table["mask"] == [0] * len(token)
    assert table["activation"] == world.activation[SITE][token, latent].tolist()
    assert table["projection"] == world.projection[SITE, OBJECTIVE][token, latent].tolist()
    assert table["influence"] == world.influence(SITE, OBJECTIVE)[token, latent].tolist()
    assert set(table["token"]) <= {f"<token {number}>" for number in range(50)}
    assert table["token"] == [f"<token {number}>" for number in table["token_id"]]


def test_masked_tokens_come_with_their_mask_where_asked(store: ScoreStore, world: World, tmp_path: Path) -> None:
    done = write_parquet(store, tmp_path / "all.parquet", include_special=True, **ASKED)
    table = pq.read_table(done.path).to_pydict()
    token, _ = np.nonzero(world.activation[SITE])
    assert done.count == len(token)
    assert table["mask"] == world.mask_N[token].tolist()


@pytest.mark.parametrize("limit", [5, 1_000_000])
def test_the_two_orders_hold_the_same_rows_whatever_fits_into_memory(
    store: ScoreStore, path: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", limit)
    by_latent = write_parquet(store, tmp_path / "latent.parquet", order="latent", **ASKED).path
    order = ["latent", "document_index", "position"]
    assert pl.read_parquet(by_latent).rows() == pl.read_parquet(path).sort(order, maintain_order=True).rows()
    groups = pq.ParquetFile(by_latent).metadata
    assert max(groups.row_group(number).num_rows for number in range(groups.num_row_groups)) <= limit
    assert [pq.read_schema(by_latent).names[c.column_index] for c in groups.row_group(0).sorting_columns] == order


def test_a_latent_that_is_silent_in_some_runs_can_be_had_in_its_order(
    store: ScoreStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.export.nonzeros.RUN_NONZEROS", 3)
    some = write_parquet(store, tmp_path / "some.parquet", order="latent", latent=3, **ASKED).path
    assert pl.read_parquet(some).rows() == pl.read_parquet(path).filter(pl.col("latent") == 3).rows()


def test_runs_of_tokens_do_not_show_in_the_file(
    store: ScoreStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.export.nonzeros.RUN_NONZEROS", 3)
    again = write_parquet(store, tmp_path / "scores.parquet", **ASKED).path
    assert pq.read_table(again).to_pydict() == pq.read_table(path).to_pydict()
    assert pq.read_schema(again).equals(pq.read_schema(path), check_metadata=True)


def test_a_selection_by_document_condition_and_latent(store: ScoreStore, path: Path, tmp_path: Path) -> None:
    done = write_parquet(
        store,
        tmp_path / "some.parquet",
        where="party=Democratic",
        latent=[5, 3, 5],
        document=["doc-01", "doc-05", "doc-02"],
        **ASKED,
    )
    kept = pl.read_parquet(path).filter(
        pl.col("document").cast(pl.String).is_in(["doc-01", "doc-05"]) & pl.col("latent").is_in([3, 5])
    )
    assert pl.read_parquet(done.path).rows() == kept.rows()
    assert done.count == kept.height > 0


def test_the_file_says_where_its_numbers_come_from(store: ScoreStore, path: Path) -> None:
    said = query_of(pq.read_table(path))["provenance"]
    assert said["run"] == identity_digest(store)
    assert said["site"] == SITE
    assert said["objective"] == OBJECTIVE
    assert said["influence_unit"] == "nats"
    assert said["model"] == {"digest": "sha256:aa"}
    assert said["sae"] == {"digest": "bb"}
    assert said["corpus"] == {"plan": "cc"}
    assert said["method"] == {"preset": "gradsae"}
    assert (said["precision_bits"], said["includes_special"], said["complete"]) == (23, False, True)
    assert said["num_documents"] == 15
    found = query(f"select value from parquet_kv_metadata('{path}') where key = 'provenance'")
    assert json.loads(found[0][0]) == said


def test_projections_of_a_probability_are_in_its_unit_and_do_not_underflow(
    scaled_store: ScoreStore, scaled_world: World, tmp_path: Path
) -> None:
    for order in ("token", "latent"):
        table = pq.read_table(write_parquet(scaled_store, tmp_path / f"{order}.parquet", order=order).path)
        expected = scaled_world.influence(SITE, "continuation-prob").sum(where=scaled_world.counted()[:, None])
        assert str(table.schema.field("influence").type) == "double"
        assert sum(table.column("influence").to_pylist()) == pytest.approx(expected, rel=1e-12)


def test_negative_activations_are_exported_as_they_are(store: ScoreStore, world: World, tmp_path: Path) -> None:
    done = write_parquet(store, tmp_path / "signed.parquet", site=SIGNED_SITE, objective=OBJECTIVE)
    values = pq.read_table(done.path).column("activation").to_numpy()
    a_NC = world.activation[SIGNED_SITE][world.counted()]
    assert values.min() < 0
    assert np.array_equal(values, a_NC[a_NC != 0])


def test_hostile_keys_are_kept_and_lone_surrogates_become_question_marks(
    hostile_store: ScoreStore, tmp_path: Path
) -> None:
    path = write_parquet(hostile_store, tmp_path / "hostile.parquet", include_special=True, **ASKED).path
    table = pq.read_table(path)
    index, keys = table.column("document_index").to_pylist(), table.column("document").to_pylist()
    shown = {m: HOSTILE[m].replace("\ud800", "?").replace("\udfff", "?") for m in range(6)}
    assert dict(zip(index, keys, strict=True)) == {m: shown[m] for m in sorted(set(index))}
    assert pl.read_parquet(path)["document"].cast(pl.String).to_list() == keys
    rows = query(f"select distinct document_index, document from '{path}'")
    assert dict(rows) == {m: shown[m] for m in sorted(set(index))}


def test_nothing_is_left_of_an_export_that_fails(store: ScoreStore, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="nothing to export: the chosen documents have no non-zeros; choose others"):
        write_parquet(store, tmp_path / "none.parquet", latent=7, **ASKED)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept_unless_it_may_be_overwritten(store: ScoreStore, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    path.write_text("mine")
    with pytest.raises(QueryError, match=r"scores\.parquet exists; .*--overwrite"):
        write_parquet(store, path, **ASKED)
    assert path.read_text() == "mine"
    assert write_parquet(store, path, overwrite=True, **ASKED).num_bytes == path.stat().st_size > 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.parquet"]


def test_what_cannot_be_exported_is_refused(store: ScoreStore, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(QueryError, match="got latent 12; expected 0 to 11"):
        write_parquet(store, path, latent=[3, 12], **ASKED)
    with pytest.raises(QueryError, match="got an empty list of latents"):
        write_parquet(store, path, latent=[], **ASKED)
    with pytest.raises(QueryError, match=r"unknown site 'model\.layers\.4'; did you mean"):
        write_parquet(store, path, site="model.layers.4", objective=OBJECTIVE)
    with pytest.raises(QueryError, match="the store has 2 sites; say which"):
        write_parquet(store, path, objective=OBJECTIVE)
    with pytest.raises(QueryError, match="unknown order 'latents'; did you mean 'latent'"):
        write_parquet(store, path, order="latents", **ASKED)
    with pytest.raises(QueryError, match="no chosen document meets"):
        write_parquet(store, path, where="party=none", document="doc-00", **ASKED)
    with pytest.raises(QueryError, match=r"folder .*absent does not exist; make it first"):
        write_parquet(store, tmp_path / "absent" / "scores.parquet", **ASKED)
    with pytest.raises(QueryError, match="is a folder; expected the path of a file"):
        write_parquet(store, tmp_path, overwrite=True, **ASKED)
    assert not path.exists()
