"""The inverted index against scipy."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from gradsae_fast.store.arrays.inverted import invert, tokens_of_gaps
from tests.store.synthetic import make_scores


@pytest.mark.parametrize(("num_tokens", "num_latents", "l0"), [(0, 5, 3), (7, 5, 0), (30, 8, 20), (200, 500, 9)])
def test_the_inverted_index_is_scipys_csc(num_tokens: int, num_latents: int, l0: int) -> None:
    scores = make_scores(np.random.default_rng(1), num_tokens, num_latents, l0, ["m"])
    index = invert(scores.indptr, scores.indices.astype(np.uint16), num_latents)
    places = np.arange(1, len(scores.indices) + 1)
    expected = csr_array((places, scores.indices, scores.indptr), shape=(num_tokens, num_latents)).tocsc()
    assert index.indptr.tolist() == expected.indptr.tolist()
    assert index.order.tolist() == (expected.data - 1).tolist()
    for latent in range(num_latents):
        rows = slice(index.indptr[latent], index.indptr[latent + 1])
        assert tokens_of_gaps(index.token_gap[rows]).tolist() == expected.indices[rows].tolist()
