"""Input scores are what plain loops over the tokens of a store give."""

from pathlib import Path

import numpy as np

from gradsae_fast import open_scores
from gradsae_fast.describe.input_score import example_tokens, input_scores
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.store import ScoreStore


def question_of(store: ScoreStore) -> Question:
    return resolve(store, by="influence", k=None, site=None, objective=None, include_special=None)


def slow_examples(store: ScoreStore, latent: int) -> list[tuple[float, int]]:
    """(activation, token id) of the strongest counted token of each document, strongest first."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for segment in store.segments:
        table = segment.tokens()
        scores = segment.site("model.layers.1").by_token()
        for token in range(segment.num_tokens):
            row = slice(scores.indptr[token], scores.indptr[token + 1])
            if table.mask[token] or latent not in scores.indices[row]:
                continue
            activation = float(scores.activation[row][scores.indices[row] == latent][0])
            document = (segment.index, int(table.document[token]))
            if activation > best.get(document, (0.0, 0))[0]:
                best[document] = (activation, int(table.token_id[token]))
    return sorted(best.values(), key=lambda example: -example[0])


def test_examples_are_the_strongest_token_of_each_document(scored: Path) -> None:
    store = open_scores(scored)
    question = question_of(store)
    for latent in range(question.num_latents):
        expected = [token_id for _, token_id in slow_examples(store, latent)]
        assert example_tokens(store, question, latent, 100).tolist() == expected
        assert example_tokens(store, question, latent, 3).tolist() == expected[:3]


def test_the_score_is_the_share_of_examples_among_the_promoted_tokens(scored: Path) -> None:
    store = open_scores(scored)
    question = question_of(store)
    latents = list(range(question.num_latents))
    promoted_KM = np.arange(20) + 13 * np.array(latents)[:, None] % 300
    shares, counts = input_scores(store, question, latents, promoted_KM, 5)
    for latent, share, count in zip(latents, shares, counts, strict=True):
        ids = [token_id for _, token_id in slow_examples(store, latent)[:5]]
        assert count == len(ids)
        assert share == (np.mean([token_id in promoted_KM[latent] for token_id in ids]) if ids else None)
    assert {0, 5} <= set(counts) or 5 in counts
    assert any(share for share in shares if share)
