"""A store of the profile `portable` opens in an implementation of Zarr that is not ours."""

from pathlib import Path

import numpy as np
import pytest
import tensorstore

from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.arrays.stored import StoredArray
from tests.export.conftest import OBJECTIVE, SITE, write
from tests.ranking.conftest import make_segments, make_world


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return write(
        tmp_path_factory.mktemp("portable") / "scores.gradsae", make_segments(make_world()), profile="portable"
    )


def read(folder: Path) -> Array:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return np.asarray(tensorstore.open(spec, open=True, read=True).result().read().result())


def test_tensorstore_reads_every_array_as_we_do(portable: ScoreStore) -> None:
    folders = [path.parent for path in Path(str(portable.path)).rglob("zarr.json") if b'"array"' in path.read_bytes()]
    kinds = set()
    for folder in folders:
        ours, theirs = StoredArray(folder, str(folder)).read(), read(folder)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs), folder
        if len(ours):
            kinds.add(ours.dtype.name)
    assert {"uint8", "uint16", "uint32", "int64", "float32", "float64"} <= kinds
    assert len(folders) > 200


def test_scores_can_be_ranked_from_what_tensorstore_reads(portable: ScoreStore) -> None:
    segment = portable.segments[0]
    site = Path(str(portable.path)) / segment.commit["writer"]["folder"] / "sites" / SITE / "by_token"
    scores = segment.site(SITE).by_token()
    influence_Z = read(site / "activation") * read(site / "projection" / OBJECTIVE)
    assert np.array_equal(influence_Z, scores.activation * scores.projections[OBJECTIVE])
    assert np.array_equal(read(site / "indices"), scores.indices)
    assert np.array_equal(read(site / "indptr"), scores.indptr)


def test_tensorstore_notices_a_flipped_bit(portable: ScoreStore, tmp_path: Path) -> None:
    folder = next(
        path.parent for path in Path(str(portable.path)).rglob("zarr.json") if path.parent.name == "activation"
    )
    copy = tmp_path / "activation"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "c.0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="Error reading shard entry"):
        read(copy)
