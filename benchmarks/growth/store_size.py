"""A store that grows: writing it, its bytes, and questions to it, opened anew for each.

Segments are cut as a run would cut them. Documents have 1,000 tokens and are taken in turn from a pool whose ids follow
a Zipf law, 30 % of a token's latents carried over from the token before; in every document values lie elsewhere.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_store import DOCUMENT_TOKENS, NUM_LATENTS, OBJECTIVE, SITE, zipf_segment
from benchmarks.growth.cost import CPU_SECONDS, PEAK, SECONDS, Found, measure, measure_short
from gradsae_fast.corpus.plan import plan_segments
from gradsae_fast.ranking import contrast, rank_documents, rank_latents, rank_tokens
from gradsae_fast.records import Array, DocumentTable, Segment, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store import ScoreWriter, open_scores

POOL_DOCUMENTS = 16
CHARACTERS = 5  # of a token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """The scores of some documents; Z non-zeros."""

    lengths: Array  # int64 [documents, tokens], active latents of a token
    edges: Array  # int64 [documents + 1], into the non-zeros
    indices: Array  # [Z]
    activation: Array  # float32 [Z]
    projection: Array  # float32 [Z]

    @classmethod
    def make(cls) -> "Pool":
        scores = zipf_segment(POOL_DOCUMENTS * DOCUMENT_TOKENS).sites[SITE]
        return cls(
            lengths=np.diff(scores.indptr).reshape(POOL_DOCUMENTS, DOCUMENT_TOKENS),
            edges=scores.indptr[::DOCUMENT_TOKENS],
            indices=scores.indices.astype(np.int32),
            activation=scores.activation,
            projection=scores.projections[OBJECTIVE],
        )

    def scores(self, segment: Segment) -> SparseScores:
        """Those of a segment's documents; values are moved along by another step in each."""
        numbers = range(segment.first_document, segment.first_document + segment.num_documents)
        chosen = [number % POOL_DOCUMENTS for number in numbers]
        parts = [slice(self.edges[number], self.edges[number + 1]) for number in chosen]
        lengths = np.concatenate([self.lengths[number] for number in chosen])

        def moved(values: Array) -> Array:
            pieces = (np.roll(values[part], 7 * number) for part, number in zip(parts, numbers, strict=True))
            return np.concatenate(list(pieces))

        return SparseScores(
            indptr=np.concatenate([[0], np.cumsum(lengths)]),
            indices=np.concatenate([self.indices[part] for part in parts]),
            activation=moved(self.activation),
            projections={OBJECTIVE: moved(self.projection)},
            num_latents=NUM_LATENTS,
        )


def of_nonzeros(count: int) -> Found:
    """A store of about so many non-zeros."""
    found: Found = {}
    whole: Found = {}  # with the making of scores
    pool = Pool.make()
    num_documents = round(count / len(pool.indices) * POOL_DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "warm", pool, 1, {})
        store = Path(folder) / "scores"
        measure("write", lambda: _write(store, pool, num_documents, found), whole)
        found |= {key: amount for key, amount in whole.items() if key[1] == PEAK}
        stored = sum(segment.commit["counts"]["nnz"][SITE] for segment in open_scores(store).segments)
        if abs(stored / count - 1) > 0.1:
            raise AssertionError(f"the store has {stored} non-zeros, expected about {count}")
        for name, question in _questions(store, pool, num_documents).items():
            measure_short(name, question, found)
        found["store", "bytes on disk"] = float(sum(p.stat().st_size for p in store.rglob("*") if p.is_file()))
    return found


def _write(store: Path, pool: Pool, num_documents: int, found: Found) -> None:
    """Write all segments; what is found leaves out the making of their scores."""
    segments = plan_segments([DOCUMENT_TOKENS] * num_documents)
    wall = cpu = 0.0
    with ScoreWriter.create_or_resume(store, run={}, identity={}, num_segments=len(segments)) as writer:
        for segment in segments:
            scores = _segment(segment, pool)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            writer.write(scores)
            wall, cpu = wall + time.perf_counter() - begun, cpu + time.process_time() - begun_cpu
    found["write", SECONDS], found["write", CPU_SECONDS] = wall, cpu


def _segment(segment: Segment, pool: Pool) -> SegmentScores:
    number = np.arange(segment.first_document, segment.first_document + segment.num_documents)
    count = len(number)
    position = np.tile(np.arange(DOCUMENT_TOKENS, dtype=np.uint32), count)
    return SegmentScores(
        index=segment.index,
        tokens=TokenTable(
            token_id=position,
            document=np.repeat(np.arange(count, dtype=np.uint32), DOCUMENT_TOKENS),
            position=position,
            context=position,
            char_start=CHARACTERS * position,
            char_end=CHARACTERS * position + CHARACTERS - 1,
            mask=(position == 0).astype(np.uint8),
        ),
        documents=DocumentTable(
            key=[f"document {m}" for m in number],
            source=["synthetic"] * count,
            row=number,
            num_tokens=np.full(count, DOCUMENT_TOKENS, np.uint32),
            status=np.zeros(count, np.uint8),
            text=["word " * DOCUMENT_TOKENS] * count,
            metadata={"half": [int(m % 2) for m in number]},
            objectives={OBJECTIVE: np.zeros(count)},
        ),
        sites={SITE: pool.scores(segment)},
    )


def _questions(store: Path, pool: Pool, num_documents: int) -> dict[str, Callable[[], Any]]:
    """One of each kind; the frequent latent is the most frequent one, the rare one has the median number of tokens."""
    counts = np.bincount(pool.indices, minlength=NUM_LATENTS)
    frequent, rare = int(counts.argmax()), int(np.argsort(counts)[NUM_LATENTS // 2])
    key = f"document {num_documents // 2}"
    return {
        "open": lambda: open_scores(store),
        "rank latents of one document": lambda: rank_latents(open_scores(store), document=key),
        "rank latents of the corpus": lambda: rank_latents(open_scores(store)),
        "rank tokens of a rare latent": lambda: rank_tokens(open_scores(store), latent=rare),
        "rank tokens of a frequent latent": lambda: rank_tokens(open_scores(store), latent=frequent),
        "rank documents of a frequent latent": lambda: rank_documents(open_scores(store), latent=frequent),
        "contrast of two halves": lambda: contrast(open_scores(store), a="half=0", b="half=1"),
    }
