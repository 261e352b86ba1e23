import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
from scipy import stats

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.export import to_csr, write_anndata
from gradsae_fast.ranking import contrast, rank_latents
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.sidecars.described import Described
from tests.export.conftest import ASKED, HOSTILE, OBJECTIVE, SITE, write
from tests.ranking.conftest import NUM_LATENTS, World, make_segments


def read(store: ScoreStore, folder: Path, **asked: Any) -> anndata.AnnData:
    return anndata.read_h5ad(write_anndata(store, folder / "scores.h5ad", **ASKED, **asked).path)


def test_anndata_reads_the_matrix_and_the_layers(store: ScoreStore, tmp_path: Path) -> None:
    data = read(store, tmp_path, by="absolute", per_token=True)
    for name, matrix in {"absolute": data.X, **data.layers}.items():
        expected, _ = to_csr(store, by=name, per_token=True, **ASKED)
        assert np.array_equal(matrix.toarray(), expected.toarray()), name
    assert set(data.layers) == {"influence", "activation", "frequency"}
    assert data.shape == (16, NUM_LATENTS)


def test_documents_come_with_their_metadata(store: ScoreStore, world: World, tmp_path: Path) -> None:
    obs = read(store, tmp_path).obs
    assert obs.index.tolist() == world.keys
    assert obs["num_tokens"].tolist() == [len(world.tokens_of([m])) for m in range(16)]
    assert obs[f"objective.{OBJECTIVE}"].tolist() == world.objective_values[OBJECTIVE].tolist()
    assert obs["party"].tolist() == world.metadata["party"]
    assert obs["year"].tolist() == world.metadata["year"]
    assert obs["revised"].tolist() == world.metadata["revised"]
    assert obs["weight"].isna().tolist() == [value is None for value in world.metadata["weight"]]
    assert obs["weight"].dropna().tolist() == [value for value in world.metadata["weight"] if value is not None]
    assert [json.loads(text) for text in obs["tags"]] == world.metadata["tags"]


def test_latents_come_with_their_statistics(store: ScoreStore, tmp_path: Path) -> None:
    var = read(store, tmp_path, where="party=Republican").var
    ranked = rank_latents(store, where="party=Republican", k=None, **ASKED).to_pylist()
    assert var.index.tolist() == [str(latent) for latent in range(NUM_LATENTS)]
    for row in ranked:
        for name in ("num_active", "frequency", "influence", "activation", "max_influence", "num_documents"):
            assert var.loc[str(row["latent"]), name] == row[name]
    assert var.loc["7", "num_active"] == 0
    assert np.array_equal(var["decoder_norm"], np.linspace(1, 2, NUM_LATENTS, dtype=np.float32))


def test_promoted_tokens_are_there_once_the_store_is_described(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "promoted" not in read(store, tmp_path).var
    monkeypatch.setattr(type(store), "described", lambda self, site: described())
    var = read(store, tmp_path, overwrite=True, latent=[3, 4]).var
    assert json.loads(var.loc["3", "promoted"]) == ["<token 3>", "<token 4>"]
    assert json.loads(var.loc["4", "suppressed"]) == ["<token 14>", "<token 15>"]


def described() -> Described:
    ids = (np.arange(NUM_LATENTS)[:, None] + np.arange(2)).astype(np.uint32)
    return Described(
        promoted_CT=ids,
        promoted_effect_CT=ids.astype(np.float32) / 2,
        suppressed_CT=ids + 10,
        suppressed_effect_CT=-ids.astype(np.float32),
        neighbours_CK=(ids + 1) % NUM_LATENTS,
        cosine_CK=np.full(ids.shape, 0.5, np.float32),
    )


def test_a_group_comparison_in_anndata_is_the_contrast_of_the_rankings(store: ScoreStore, tmp_path: Path) -> None:
    data = read(store, tmp_path, per_token=True)
    data = data[data.obs["num_tokens"] > 0]
    dense = {party: data[data.obs["party"] == party].X.toarray() for party in ("Republican", "Democratic")}
    a_MC, b_MC = dense["Republican"], dense["Democratic"]
    test = stats.ttest_ind(a_MC, b_MC, equal_var=False)
    ranked = contrast(store, a="party=Republican", b="party=Democratic", k=None, **ASKED).to_pylist()
    assert len(ranked) > 5
    for row in ranked:
        c = row["latent"]
        assert row["mean_a"] == pytest.approx(a_MC[:, c].mean(), rel=1e-9)
        assert row["difference"] == pytest.approx(a_MC[:, c].mean() - b_MC[:, c].mean(), rel=1e-9, abs=1e-12)
        assert row["t"] == pytest.approx(test.statistic[c], rel=1e-6)


def test_chosen_latents_are_the_columns(store: ScoreStore, tmp_path: Path) -> None:
    data = read(store, tmp_path, latent=[9, 2], document=["doc-05", "doc-01"])
    whole, _ = to_csr(store, **ASKED)
    assert data.var_names.tolist() == ["2", "9"]
    assert data.obs_names.tolist() == ["doc-01", "doc-05"]
    assert np.array_equal(data.X.toarray(), whole.toarray()[np.ix_([1, 5], [2, 9])])


def test_the_file_says_where_its_numbers_come_from(store: ScoreStore, tmp_path: Path) -> None:
    said = json.loads(read(store, tmp_path, by="positive").uns["provenance"])
    assert (said["export"], said["by"], said["unit"], said["site"]) == ("anndata", "positive", "nats", SITE)


def test_the_file_can_be_read_from_disk_row_by_row(store: ScoreStore, tmp_path: Path) -> None:
    path = write_anndata(store, tmp_path / "scores.h5ad", **ASKED).path
    backed = anndata.read_h5ad(path, backed="r")
    whole, _ = to_csr(store, **ASKED)
    assert np.array_equal(backed.X[3:5].toarray(), whole.toarray()[3:5])
    assert backed.X.group["indptr"].dtype == np.int64
    backed.file.close()


def test_columns_of_similar_names_stay_apart_in_every_segment(world: World, tmp_path: Path) -> None:
    segments = make_segments(world)[:2]
    of_segment: list[dict[str, str]] = [{"a|b": "bar", "a/b": "slash"}, {"a/b": "slash", f"objective.{OBJECTIVE}": "x"}]
    changed = [
        dataclasses.replace(
            segment,
            documents=dataclasses.replace(
                segment.documents, metadata={name: [text] * len(segment.documents.key) for name, text in named.items()}
            ),
        )
        for segment, named in zip(segments, of_segment, strict=True)
    ]
    obs = read(write(tmp_path / "named.gradsae", changed), tmp_path).obs
    of_documents = [0] * len(segments[0].documents.key) + [1] * len(segments[1].documents.key)
    columns = {"a|b": "a|b", "metadata.a|b": "a/b", f"metadata.objective.{OBJECTIVE}": f"objective.{OBJECTIVE}"}
    for shown, name in columns.items():
        found = [None if value != value else value for value in obs[shown]]
        assert found == [of_segment[number].get(name) for number in of_documents], shown
    assert obs[f"objective.{OBJECTIVE}"].tolist() == world.objective_values[OBJECTIVE][: len(obs)].tolist()


def test_hostile_texts_are_replaced_visibly_and_keys_stay_apart(hostile_store: ScoreStore, tmp_path: Path) -> None:
    data = read(hostile_store, tmp_path, include_special=True)
    shown = ["?", "a␀b", *HOSTILE[2:5], "?-1"]
    assert data.obs_names.tolist() == shown
    assert set(data.obs["a|b"]) == {"slash␀"}
    assert set(data.obs["metadata._index"]) == {"?"}
    assert set(data.obs["metadata.num_tokens"]) == {"<b>"}
    assert set(data.obs["metadata.."]) == {"dot"}
    assert data.obs["metadata.segment"].isna().all()
    assert data.obs["num_tokens"].dtype == np.int64


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_disk_without_room_is_noticed_before_hdf5_ends_the_process(
    store: ScoreStore, tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40] * calls + [1 << 20])
    monkeypatch.setattr("gradsae_fast.export.h5ad.shutil.disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(StoreError, match=r"disk full: .*1048576 bytes are free; HDF5 may need .*free space and run"):
        write_anndata(store, tmp_path / "scores.h5ad", **ASKED)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QueryError, match=r"expected a name that ends in \.h5ad"):
        write_anndata(store, tmp_path / "scores.h5", **ASKED)
    with pytest.raises(QueryError, match="no counted token"):
        write_anndata(store, tmp_path / "scores.h5ad", document="doc-02", **ASKED)
    with pytest.raises(QueryError, match="nothing to export"):
        write_anndata(store, tmp_path / "scores.h5ad", latent=7, **ASKED)
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(QueryError, match=r"pip install 'gradsae-fast\[anndata\]'"):
        write_anndata(store, tmp_path / "scores.h5ad", **ASKED)
    assert not list(tmp_path.iterdir())
