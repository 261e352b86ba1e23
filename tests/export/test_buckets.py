"""Records come back sorted by latent, and no file but that of one latent is larger than what memory is meant for."""

from pathlib import Path

import numpy as np
import pytest

from gradsae_fast.export.buckets import Buckets, spread

RECORD = np.dtype([("latent", "<i4"), ("number", "<i8")])


@pytest.mark.parametrize("count_C", [[0, 0, 90, 0, 3], [3, 4, 5, 3, 0], [8, 8, 0, 9], [0], [40, 0, 0, 1]])
def test_several_latents_share_a_file_only_where_they_fit_into_memory(count_C: list[int], tmp_path: Path) -> None:
    limit = 8
    bucket_C = spread(np.array(count_C), limit)
    for bucket in np.unique(bucket_C):
        together = np.flatnonzero(bucket_C == bucket)
        assert len(together) == 1 or np.array(count_C)[together].sum() <= limit
    rng = np.random.default_rng(0)
    latent_Z = rng.permutation(np.repeat(np.arange(len(count_C)), count_C))
    records = np.array(list(zip(latent_Z, range(len(latent_Z)), strict=True)), RECORD)
    buckets = Buckets(tmp_path, np.array(count_C), RECORD, limit)
    for part in np.array_split(records, 3):
        buckets.add(part)
    pieces = list(buckets.read())
    assert all(len(piece) <= limit for piece in pieces)
    found = np.concatenate([np.zeros(0, RECORD), *pieces])
    assert found.tolist() == records[np.argsort(latent_Z, kind="stable")].tolist()
    assert not list(tmp_path.iterdir())
