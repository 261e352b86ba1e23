"""The input score: whether a latent speaks of the tokens that fire it.

The token on which the latent activates most is taken from each document, and the documents with the strongest ones are
its examples. The score is the share of examples whose token is among the 20 that the latent promotes most (its direct
logit effects); 1: it promotes what fires it. Tokens are compared by their ids, so " dog" and "Dog" differ. An example
has a positive activation: a negative one writes the row's opposite. No model is needed.

Source: Arad, Mueller and Belinkov, arXiv 2505.20063, which has 20 to 100 sentences; their code leaves out latents with
fewer than 10. Here the number of examples stands beside the score.

Letters: K latents, M promoted tokens, N tokens of a segment, P of these on which a latent is active, S examples.
"""

from collections.abc import Sequence

import numpy as np

from gradsae_fast.ranking.question import Question
from gradsae_fast.records import Array, counted_tokens
from gradsae_fast.store import ScoreStore


def input_scores(
    store: ScoreStore, question: Question, latents: Sequence[int], promoted_KM: Array, examples: int
) -> tuple[list[float | None], list[int]]:
    """The score of each latent, None where it has no example, and its number of examples (at most `examples`)."""
    tokens = [example_tokens(store, question, latent, examples) for latent in latents]
    shares = [
        float(np.isin(token_S, promoted_M).mean()) if len(token_S) else None
        for token_S, promoted_M in zip(tokens, promoted_KM, strict=True)
    ]
    return shares, [len(token_S) for token_S in tokens]


def example_tokens(store: ScoreStore, question: Question, latent: int, count: int) -> Array:
    """Ids of the tokens on which a latent activates most, one a document, strongest first, uint32 [S].

    Tokens that the question counts; of equal activations, the first in the corpus.
    """
    strongest: list[tuple[float, int]] = []
    for segment in store.segments:
        token_P, activation_P, _ = segment.site(question.site).by_latent(latent)
        if not len(token_P):
            continue
        counted_P = counted_tokens(segment.token_column("mask")[token_P], question.include_special)
        kept_P = counted_P & (activation_P > 0)
        token_P, activation_P = token_P[kept_P], activation_P[kept_P]
        slot_P = segment.token_column("document")[token_P]
        order_P = np.lexsort((token_P, -activation_P, slot_P))
        first_S = order_P[np.unique(slot_P[order_P], return_index=True)[1]]
        token_ids = segment.token_column("token_id")[token_P[first_S]]
        strongest += zip((-activation_P[first_S]).tolist(), token_ids.tolist(), strict=True)
        strongest = sorted(strongest, key=lambda example: example[0])[:count]
    return np.array([token_id for _, token_id in strongest], np.uint32)
