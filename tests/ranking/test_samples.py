from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradsae_fast.ranking.question import SUMS, resolve
from gradsae_fast.ranking.samples import samples
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.store import ScoreStore

if TYPE_CHECKING:
    from tests.ranking.conftest import MakeStore, World

SITE = "model.layers.5"


@pytest.mark.parametrize("by", SUMS)
@pytest.mark.parametrize("include_special", [False, True])
def test_samples_are_means_over_the_counted_tokens_of_each_document(
    world: "World", store: ScoreStore, by: str, include_special: bool
) -> None:
    chosen: dict[str, Any] = {"site": SITE, "objective": "entropy", "include_special": include_special}
    question = resolve(store, by=by, k=None, **chosen)
    found = samples(store, select(store), question)
    documents = [m for m in range(len(world.keys)) if len(world.tokens_of([m], include_special=include_special))]
    assert len(documents) == len(world.keys) - 1  # one is empty
    assert found.keys() == [world.keys[m] for m in documents]
    assert found.num_tokens_S.tolist() == [
        len(world.tokens_of([m], include_special=include_special)) for m in documents
    ]
    sums = [world.sums([m], SITE, "entropy", include_special=include_special) for m in documents]
    amount = "num_active" if by == "frequency" else by
    expected = np.array([row[amount] for row in sums]) / found.num_tokens_S[:, None]
    np.testing.assert_allclose(found.matrix.toarray(), expected, rtol=1e-12)
    assert found.matrix.nnz == sum(np.count_nonzero(row["num_active"]) for row in sums)  # active with a score of 0 too
    assert found.matrix.has_canonical_format


def test_entries_of_other_latents_and_documents_are_left_out(world: "World", store: ScoreStore) -> None:
    question = resolve(store, by="influence", k=None, site=SITE, objective="entropy", include_special=None)
    where = "party=Republican"
    whole, some = (
        samples(store, select(store, where=where), question, latents=latents) for latents in (None, np.array([1, 9]))
    )
    kept = np.isin(np.arange(whole.matrix.shape[1]), [1, 9])
    np.testing.assert_array_equal(some.matrix.toarray(), whole.matrix.toarray() * kept)
    assert some.matrix.nnz == np.isin(whole.matrix.indices, [1, 9]).sum()
    assert some.keys() == [
        key for key, party in zip(world.keys, world.metadata["party"], strict=True) if party == "Republican"
    ]


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_an_infinite_sum_is_no_number(make_store: "MakeStore", infinity: float) -> None:
    world = make_store.world()
    row = np.flatnonzero(world.counted())[0]
    world.activation["model.layers.3"][row, 4] = 1
    world.projection["model.layers.3", "next-token"][row, 4] = infinity
    store = make_store(world)
    question = resolve(store, by="influence", k=None, site=None, objective=None, include_special=None)
    matrix = samples(store, select(store), question).matrix.toarray()
    assert np.isnan(matrix[0, 4])
    assert np.isnan(matrix).sum() == 1


def test_no_documents_make_an_empty_matrix(store: ScoreStore) -> None:
    question = resolve(store, by="influence", k=None, site=SITE, objective="entropy", include_special=None)
    only_empty = samples(store, select(store, document="doc-02"), question)
    assert only_empty.matrix.shape == (0, question.num_latents)
    assert only_empty.keys() == []
    assert samples(store, Selection(parts=()), question).matrix.shape == (0, question.num_latents)
