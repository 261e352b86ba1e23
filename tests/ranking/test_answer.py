from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradsae_fast.ranking import query_of, rank_latents
from gradsae_fast.ranking.answer import first_k, identity_digest
from gradsae_fast.store import ScoreStore


@pytest.mark.parametrize(
    ("k", "smallest", "expected"),
    [(None, False, [2, 3, 0, 4, 1]), (2, False, [2, 3]), (None, True, [4, 3, 0, 2, 1]), (9, True, [4, 3, 0, 2, 1])],
)
def test_rows_go_by_score_then_by_tie_with_nan_last(k: int | None, smallest: bool, expected: list[int]) -> None:
    score = np.array([1.0, np.nan, 2.0, 1.0, -3.0])
    tie = np.array([7, 0, 5, 6, 1])
    assert first_k(score, tie, k, smallest=smallest).tolist() == expected


def test_another_run_has_another_digest(store: ScoreStore) -> None:
    digest = identity_digest(store)
    assert query_of(rank_latents(store, site="model.layers.3", objective="entropy"))["run"] == digest
    assert identity_digest(fake(dict(reversed(list(store.identity.items()))))) == digest
    assert identity_digest(fake({**store.identity, "corpus": "another"})) != digest
    assert identity_digest(fake(store.identity, store.identity)) != digest


def fake(*identities: dict[str, Any]) -> Any:
    """What a store of generations of these identities says of itself."""
    generations = tuple(SimpleNamespace(identity=identity) for identity in identities)
    return SimpleNamespace(identity=identities[0], generations=generations)


def test_a_table_without_metadata_has_no_query() -> None:
    assert query_of(pa.table({"a": [1]})) == {}
