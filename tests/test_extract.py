"""The straight line on a tiny model: what a user would state of a finished store."""

from collections.abc import Callable

import numpy as np

from gradsae_fast import open_scores, rank_latents
from gradsae_fast.config import ExtractConfig
from gradsae_fast.extract import extract

Configure = Callable[..., ExtractConfig]


def test_every_token_of_the_corpus_is_scored_once(configure: Configure) -> None:
    config = configure()
    report = extract(config)
    store = open_scores(config.store.path)
    assert store.is_complete
    assert report.num_tokens == store.num_tokens
    for segment in store.segments:
        tokens, documents = segment.tokens(), segment.documents()
        for slot, length in enumerate(documents.num_tokens):
            assert tokens.position[tokens.document == slot].tolist() == list(range(length))
    assert rank_latents(store, where="party=R").num_rows == 20
    assert np.isfinite(list(report.fvu.values())).all()
