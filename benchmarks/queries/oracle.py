"""Our answers, in the form that the databases give theirs, and whether the two are the same."""

import numpy as np
import pyarrow as pa

from benchmarks.queries.databases import Answer
from benchmarks.queries.questions import Subjects, questions
from gradsae_fast.store import ScoreStore

_SCORES = {"latents": "score", "documents": "score", "tokens": "influence", "contrast": "difference"}
_CLOSE = 1e-5  # stored sums are float32, and a difference of means cancels


def ours(store: ScoreStore, name: str, subjects: Subjects) -> Answer:
    """Ask our question `name`; tokens and documents as numbers of the whole store."""
    table = questions(subjects)[name](store)
    if table is None:
        raise ValueError(f"{name!r} has no answer to compare")
    kind = table.schema.metadata[b"ranking"].decode()
    return list(zip(_what(store, table, kind), table[_SCORES[kind]].to_pylist(), strict=True))


def assert_same(got: Answer, expected: Answer) -> None:
    """Hold one answer to another: the same scores in the same order, of the same things but where scores are equal.

    Raises:
        AssertionError: they differ.
    """
    got_scores, expected_scores = (np.array([score for _, score in answer]) for answer in (got, expected))
    tolerance = _CLOSE * np.abs(expected_scores).max(initial=0.0)
    np.testing.assert_allclose(got_scores, expected_scores, rtol=0, atol=tolerance)
    scores = dict(expected)
    for what, score in got:
        if what in scores:
            np.testing.assert_allclose(score, scores[what], rtol=0, atol=tolerance)
        elif abs(score - expected_scores[-1]) > tolerance:
            raise AssertionError(f"{what} with {score} is not in the oracle's answer, whose last is {expected[-1]}")


def _what(store: ScoreStore, table: pa.Table, kind: str) -> list[int]:
    if kind in ("latents", "contrast"):
        latents: list[int] = table["latent"].to_pylist()
        return latents
    keys = table["key" if kind == "documents" else "document"].to_pylist()
    positions = table["position"].to_pylist() if kind == "tokens" else [0] * len(keys)
    wanted = set(keys)
    found: dict[str, tuple[int, int]] = {}  # key -> number of the document, and of its first token
    tokens = documents = 0
    for segment in store.segments:
        for slot, key in enumerate(segment.document_keys()):
            if key in wanted:
                first = int(np.searchsorted(segment.token_column("document"), slot))
                found[key] = (documents + slot, tokens + first)
        tokens, documents = tokens + segment.num_tokens, documents + segment.num_documents
    which = 1 if kind == "tokens" else 0
    return [found[key][which] + position for key, position in zip(keys, positions, strict=True)]
