import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from gradsae_fast.errors import QueryError
from gradsae_fast.export import npz, read_csr, to_csr, write_csr
from gradsae_fast.ranking import query_of, rank_documents, rank_latents
from gradsae_fast.store import ScoreStore
from tests.export.conftest import ASKED, HOSTILE, OBJECTIVE, SIGNED_SITE, SITE
from tests.ranking.conftest import NUM_LATENTS, World

MEASURES = ("influence", "positive", "absolute", "activation")


def expected_tokens(world: World, site: str, by: str) -> Any:
    influence_NC = world.influence(site, OBJECTIVE)
    values = {
        "influence": influence_NC,
        "positive": np.maximum(influence_NC, 0),
        "absolute": np.abs(influence_NC),
        "activation": world.activation[site],
    }
    return values[by][world.counted()]


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
def test_rows_of_tokens_are_the_scores_of_counted_tokens(store: ScoreStore, world: World, site: str, by: str) -> None:
    matrix, rows = to_csr(store, rows="tokens", by=by, site=site, objective=OBJECTIVE)
    assert np.array_equal(matrix.toarray(), expected_tokens(world, site, by))
    assert matrix.nnz == np.count_nonzero(world.activation[site][world.counted()])
    counted = world.counted()
    assert rows.column("key").to_pylist() == [world.keys[m] for m in world.document_N[counted]]
    assert rows.column("position").to_pylist() == world.position_N[counted].tolist()
    assert rows.column("document_index").to_pylist() == world.document_N[counted].tolist()


@pytest.mark.parametrize("by", [*MEASURES, "frequency"])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("include_special", [False, True])
def test_rows_of_documents_are_their_sums_or_means(
    store: ScoreStore, world: World, by: str, per_token: bool, include_special: bool
) -> None:
    matrix, rows = to_csr(store, by=by, per_token=per_token, include_special=include_special, **ASKED)
    assert matrix.shape == (16, NUM_LATENTS)
    for m in range(16):
        sums = world.sums([m], SITE, OBJECTIVE, include_special=include_special)[by]
        length = len(world.tokens_of([m], include_special=include_special))
        assert rows.column("num_tokens")[m].as_py() == length
        divided = sums / max(length, 1) if per_token and by != "frequency" else sums
        assert np.array_equal(matrix[[m]].toarray()[0], divided)
    assert rows.column("key").to_pylist() == world.keys


def test_a_column_of_the_matrix_is_the_ranking_of_its_latent(store: ScoreStore) -> None:
    matrix, rows = to_csr(store, by="absolute", **ASKED)
    ranked = rank_documents(store, latent=4, by="absolute", k=3, **ASKED)
    column = matrix[:, [4]].toarray()[:, 0]
    best = np.argsort(-column, kind="stable")[:3]
    assert rows.column("key").take(best).to_pylist() == ranked.column("key").to_pylist()
    assert column[best].tolist() == ranked.column("score").to_pylist()


@pytest.mark.parametrize("rows", ["documents", "tokens"])
@pytest.mark.parametrize("run", [3, 1 << 19])
def test_scipy_opens_the_file_and_finds_the_same_matrix(
    store: ScoreStore, tmp_path: Path, rows: str, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.export.nonzeros.RUN_NONZEROS", run)
    done = write_csr(store, tmp_path / "scores.npz", rows=rows, **ASKED)
    matrix, table = to_csr(store, rows=rows, **ASKED)
    loaded = sparse.load_npz(done.path)
    assert isinstance(loaded, sparse.csr_array)
    assert loaded.has_canonical_format
    assert (loaded.dtype, loaded.indptr.dtype, loaded.indices.dtype) == (matrix.dtype, np.int32, np.int32)
    for part in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(loaded, part), getattr(matrix, part))
    again, rows_again = read_csr(done.path)
    assert (again != matrix).nnz == 0
    assert rows_again.equals(table, check_metadata=True)
    assert done.count == matrix.nnz


def test_entries_beyond_int32_get_int64_indices(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "_INT32_MAX", 10)
    path = write_csr(store, tmp_path / "scores.npz", rows="tokens", **ASKED).path
    with np.load(path) as file:
        assert file["indptr"].dtype == file["indices"].dtype == np.int64
    assert (sparse.load_npz(path) != to_csr(store, rows="tokens", **ASKED)[0]).nnz == 0


def test_chosen_latents_keep_their_columns_and_others_are_empty(store: ScoreStore, tmp_path: Path) -> None:
    whole, _ = to_csr(store, **ASKED)
    some, _ = read_csr(write_csr(store, tmp_path / "some.npz", latent=[2, 9], **ASKED).path)
    assert np.array_equal(some.toarray()[:, [2, 9]], whole.toarray()[:, [2, 9]])
    assert some.nnz == np.count_nonzero(np.isin(whole.indices, [2, 9]))


def test_sums_over_a_group_are_the_ranking_of_the_group(store: ScoreStore) -> None:
    matrix, _ = to_csr(store, where="party=Republican", by="positive", **ASKED)
    ranked = rank_latents(store, where="party=Republican", by="positive", k=None, **ASKED)
    total = np.asarray(matrix.sum(axis=0))
    assert total[ranked.column("latent").to_numpy()].tolist() == ranked.column("score").to_pylist()


def test_values_of_a_probability_are_in_its_unit(scaled_store: ScoreStore, scaled_world: World) -> None:
    matrix, _ = to_csr(scaled_store, rows="tokens")
    assert matrix.dtype == np.float64
    expected = scaled_world.influence(SITE, "continuation-prob")[scaled_world.counted()]
    assert np.allclose(matrix.toarray(), expected, rtol=1e-12, atol=0)


def test_the_file_says_where_its_numbers_come_from(store: ScoreStore, tmp_path: Path) -> None:
    path = write_csr(store, tmp_path / "scores.npz", by="activation", per_token=True, **ASKED).path
    with np.load(path) as file:
        said = json.loads(file["provenance"].tobytes())
    assert said == query_of(to_csr(store, by="activation", per_token=True, **ASKED)[1])["provenance"]
    assert (said["by"], said["per_token"], said["rows"]) == ("activation", True, "documents")
    assert said["unit"] == "SAE activation per scored token"


def test_every_hostile_key_survives_in_the_file(hostile_store: ScoreStore, tmp_path: Path) -> None:
    path = write_csr(hostile_store, tmp_path / "hostile.npz", include_special=True, **ASKED).path
    with np.load(path) as file:
        text, edges = file["key_bytes"].tobytes(), file["key_offsets"].tolist()
    assert tuple(text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(edges)) == HOSTILE
    assert isinstance(read_csr(path)[1], pa.Table)


def test_what_makes_no_matrix_is_refused(store: ScoreStore, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"expected a name that ends in \.npz"):
        write_csr(store, tmp_path / "scores.csr", **ASKED)
    with pytest.raises(QueryError, match="unknown rows 'token'; did you mean 'tokens'"):
        to_csr(store, rows="token", **ASKED)
    with pytest.raises(QueryError, match="per_token has no effect on rows of one token"):
        to_csr(store, rows="tokens", per_token=True, **ASKED)
    with pytest.raises(QueryError, match="unknown by 'frequency'"):
        to_csr(store, rows="tokens", by="frequency", **ASKED)
    for rows in ("tokens", "documents"):
        with pytest.raises(QueryError, match="nothing to export"):
            to_csr(store, rows=rows, document="doc-02", **ASKED)
        with pytest.raises(QueryError, match="nothing to export"):
            write_csr(store, tmp_path / "none.npz", rows=rows, latent=7, **ASKED)
    assert not list(tmp_path.iterdir())
