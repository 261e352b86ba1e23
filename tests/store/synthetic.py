"""Random segments for the tests of the store: a pure function of a seed. Imported by tests and by child processes.

N tokens, M documents, C latents, Z non-zeros.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradsae_fast.records import DocumentTable, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store.format.layout import Array

IDENTITY: dict[str, Any] = {"model": {"name": "tiny", "dtype": "float32"}, "corpus": "0a1b"}
SITE = "model.layers.3"


def make_scores(
    rng: np.random.Generator,
    num_tokens: int,
    num_latents: int,
    l0: int,
    objectives: Sequence[str],
    signed: bool = False,
) -> SparseScores:
    """Tokens with 0 to 2·l0 active latents each, at most C."""
    lengths = rng.integers(0, 2 * l0 + 1, num_tokens).clip(max=num_latents)
    rows = [np.sort(rng.choice(num_latents, length, replace=False)) for length in lengths]
    indices = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
    activation = rng.lognormal(size=len(indices)).astype(np.float32)
    if signed:
        activation *= rng.choice(np.array([-1, 1], np.float32), len(indices))
    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        indices=indices,
        activation=activation,
        projections={name: rng.normal(scale=1e-4, size=len(indices)).astype(np.float32) for name in objectives},
        num_latents=num_latents,
    )


def make_tokens(rng: np.random.Generator, num_tokens: int, num_documents: int) -> TokenTable:
    """Tokens in document order; about one in five is masked. Some documents may be empty."""
    document = np.sort(rng.integers(0, max(1, num_documents), num_tokens)).astype(np.uint32)
    numbers = rng.integers(0, 50_000, (5, num_tokens)).astype(np.uint32)
    names = ("token_id", "position", "context", "char_start", "char_end")
    mask = rng.choice(np.array([0, 0, 0, 0, 1, 2, 4, 5], np.uint8), num_tokens)
    return TokenTable(document=document, mask=mask, **dict(zip(names, numbers, strict=True)))


def make_documents(
    rng: np.random.Generator, tokens: TokenTable, num_documents: int, objectives: Sequence[str]
) -> DocumentTable:
    """Documents with unicode texts and metadata of every JSON type."""
    values: list[Any] = ["Whig", None, 3, 2.5, True, [1, "two"], {"a": {"b": None}}, "ß → 文"]
    return DocumentTable(
        key=[f"address-{m}" for m in range(num_documents)],
        source=["speeches.jsonl"] * num_documents,
        row=np.arange(num_documents, dtype=np.int64),
        num_tokens=np.bincount(tokens.document, minlength=num_documents).astype(np.uint32),
        status=rng.integers(0, 3, num_documents).astype(np.uint8),
        text=[f"Text {m}: naïve 文字 \U0001f600" * (m % 3) for m in range(num_documents)],
        metadata={"Party": [values[m % len(values)] for m in range(num_documents)]},
        objectives={name: rng.normal(size=num_documents) for name in objectives},
    )


def make_segment(
    index: int = 0,
    *,
    num_tokens: int = 40,
    num_documents: int = 4,
    num_latents: int = 64,
    l0: int = 5,
    sites: Sequence[str] = (SITE,),
    objectives: Sequence[str] = ("next-token",),
    signed: bool = False,
    seed: int = 0,
) -> SegmentScores:
    """A random segment; equal arguments give equal segments."""
    rng = np.random.default_rng([seed, index])
    tokens = make_tokens(rng, num_tokens, num_documents)
    return SegmentScores(
        index=index,
        tokens=tokens,
        documents=make_documents(rng, tokens, num_documents, objectives),
        sites={site: make_scores(rng, num_tokens, num_latents, l0, objectives, signed) for site in sites},
    )


def dense(scores: SparseScores, values: Array) -> Array:
    """Values [Z] as a float64 matrix [N, C]."""
    matrix = np.zeros((len(scores.indptr) - 1, scores.num_latents))
    rows = np.repeat(np.arange(len(scores.indptr) - 1), np.diff(scores.indptr))
    matrix[rows, scores.indices] = values
    return matrix
