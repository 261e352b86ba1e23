"""How long a question takes: rankings over a synthetic store of a million non-zeros, opened cold for each round.

Each ranking is first compared with sums over the arrays that the store was written from. Ids follow a Zipf law, as the
firing rates of real latents do; values are exact at the store's default precision. With --benchmark-disable the store
is a twentieth of the size and each question is asked once.

    pytest benchmarks/bench_ranking.py --benchmark-enable

Letters: N tokens, M documents, C latents, Z non-zeros.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradsae_fast.ranking import contrast, rank_documents, rank_latents, rank_tokens
from gradsae_fast.records import Array, DocumentTable, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores

NUM_LATENTS = 4096
NUM_SEGMENTS = 8
L0 = 32
DOCUMENT_TOKENS = 256
SITE = "model.layers.18"
OBJECTIVE = "next-token"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """What the store was written from, all segments end to end; every token counts."""

    path: Path
    document_Z: Array
    token_Z: Array
    latent_Z: Array
    influence_Z: Array  # float64
    num_documents: int
    num_tokens: int


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Write the store: 1,048,576 non-zeros, or a twentieth."""
    quick = request.config.getoption("benchmark_disable") and not request.config.getoption("benchmark_enable")
    documents_per_segment = 1 if quick else 16
    path = tmp_path_factory.mktemp("ranking") / "bench.gradsae"
    rng = np.random.default_rng(0)
    segments = [_segment(rng, index, documents_per_segment) for index in range(NUM_SEGMENTS)]
    with ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=NUM_SEGMENTS) as writer:
        for segment in segments:
            writer.write(segment)
    return _flatten(path, segments)


def _segment(rng: np.random.Generator, index: int, num_documents: int) -> SegmentScores:
    num_tokens = num_documents * DOCUMENT_TOKENS
    weight = 1 / (np.arange(NUM_LATENTS) + 20.0)
    # The L0 largest of exponential clocks with these rates: a weighted draw without repetition, row by row.
    clocks = rng.exponential(size=(num_tokens, NUM_LATENTS)).astype(np.float32) / weight.astype(np.float32)
    indices = np.sort(np.argpartition(clocks, L0, axis=1)[:, :L0], axis=1).ravel().astype(np.int32)
    document = np.repeat(np.arange(num_documents, dtype=np.uint32), DOCUMENT_TOKENS)
    position = np.tile(np.arange(DOCUMENT_TOKENS, dtype=np.uint32), num_documents)
    number = np.arange(num_documents) + index * num_documents
    return SegmentScores(
        index=index,
        tokens=TokenTable(
            token_id=rng.integers(0, 50_000, num_tokens).astype(np.uint32),
            document=document,
            position=position,
            context=position,
            char_start=position * 5,
            char_end=position * 5 + 4,
            mask=np.zeros(num_tokens, np.uint8),
        ),
        documents=DocumentTable(
            key=[f"document {m}" for m in number],
            source=["synthetic"] * num_documents,
            row=number,
            num_tokens=np.full(num_documents, DOCUMENT_TOKENS, np.uint32),
            status=np.zeros(num_documents, np.uint8),
            text=["word " * DOCUMENT_TOKENS] * num_documents,
            metadata={"half": [int(m % 2) for m in number]},
            objectives={OBJECTIVE: np.zeros(num_documents)},
        ),
        sites={
            SITE: SparseScores(
                indptr=np.arange(num_tokens + 1, dtype=np.int64) * L0,
                indices=indices,
                activation=_ten_bits(rng.lognormal(size=len(indices))),
                projections={OBJECTIVE: _ten_bits(rng.standard_t(3, len(indices)) / 100)},
                num_latents=NUM_LATENTS,
            )
        },
    )


def _ten_bits(values: Array) -> Array:
    """Cut float32 values to the ten bits of significand that the store keeps."""
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _flatten(path: Path, segments: list[SegmentScores]) -> Corpus:
    documents_each, tokens_each = len(segments[0].documents.key), len(segments[0].tokens.token_id)
    token_Z = np.repeat(np.arange(NUM_SEGMENTS * tokens_each), L0)
    scores = [segment.sites[SITE] for segment in segments]
    influence = [part.activation * part.projections[OBJECTIVE] for part in scores]
    return Corpus(
        path=path,
        document_Z=token_Z // DOCUMENT_TOKENS,
        token_Z=token_Z,
        latent_Z=np.concatenate([part.indices for part in scores]),
        influence_Z=np.concatenate(influence).astype(np.float64),
        num_documents=NUM_SEGMENTS * documents_each,
        num_tokens=NUM_SEGMENTS * tokens_each,
    )


def _measure(benchmark: Any, corpus: Corpus, ask: Callable[[ScoreStore], pa.Table]) -> None:
    benchmark.extra_info.update(
        machine=platform.processor() or platform.machine(),
        python=platform.python_version(),
        numpy=np.__version__,
        non_zeros=len(corpus.latent_Z),
        tokens=corpus.num_tokens,
        documents=corpus.num_documents,
        latents=NUM_LATENTS,
        segments=NUM_SEGMENTS,
    )
    benchmark(lambda: ask(open_scores(corpus.path)))


def _check(table: pa.Table, column: str, value: Array, keys: Array) -> None:
    """Compare a table with the first 20 of a brute-force score."""
    order = np.lexsort((np.arange(len(value)), -value))[: table.num_rows]
    np.testing.assert_array_equal(keys[order], table.column(column))


def _sum_by_latent(corpus: Corpus, chosen_Z: Array) -> Array:
    return np.bincount(corpus.latent_Z[chosen_Z], corpus.influence_Z[chosen_Z], NUM_LATENTS)


def bench_top_latents_of_a_document(benchmark: Any, corpus: Corpus) -> None:
    number = corpus.num_documents // 2

    def ask(store: ScoreStore) -> pa.Table:
        return rank_latents(store, document=f"document {number}")

    _check(ask(open_scores(corpus.path)), "latent", _sum_by_latent(corpus, corpus.document_Z == number), _latents())
    _measure(benchmark, corpus, ask)


def bench_top_latents_of_the_corpus(benchmark: Any, corpus: Corpus) -> None:
    expected = _sum_by_latent(corpus, np.ones(len(corpus.latent_Z), bool))
    _check(rank_latents(open_scores(corpus.path)), "latent", expected, _latents())
    _measure(benchmark, corpus, rank_latents)


@pytest.mark.parametrize("latent", [0, 2000], ids=["dense latent", "sparse latent"])
def bench_top_tokens_of_a_latent(benchmark: Any, corpus: Corpus, latent: int) -> None:
    def ask(store: ScoreStore) -> pa.Table:
        return rank_tokens(store, latent=latent)

    chosen_Z = corpus.latent_Z == latent
    position = corpus.token_Z[chosen_Z] % DOCUMENT_TOKENS
    _check(ask(open_scores(corpus.path)), "position", corpus.influence_Z[chosen_Z], position)
    _measure(benchmark, corpus, ask)


def bench_top_documents_of_a_latent(benchmark: Any, corpus: Corpus) -> None:
    def ask(store: ScoreStore) -> pa.Table:
        return rank_documents(store, latent=0)

    chosen_Z = corpus.latent_Z == 0
    expected = np.bincount(corpus.document_Z[chosen_Z], corpus.influence_Z[chosen_Z], corpus.num_documents)
    keys = np.array([f"document {m}" for m in range(corpus.num_documents)])
    _check(ask(open_scores(corpus.path)), "key", expected, keys)
    _measure(benchmark, corpus, ask)


def bench_contrast_of_two_halves(benchmark: Any, corpus: Corpus) -> None:
    def ask(store: ScoreStore) -> pa.Table:
        return contrast(store, a="half=0", b="half=1")

    sums = [_sum_by_latent(corpus, corpus.document_Z % 2 == half) for half in (0, 1)]
    expected = abs(sums[0] - sums[1]) * 2 / corpus.num_tokens
    _check(ask(open_scores(corpus.path)), "latent", expected, _latents())
    _measure(benchmark, corpus, ask)


def _latents() -> Array:
    return np.arange(NUM_LATENTS)
