"""The store's size and speed: bytes per non-zero by profile and precision, writing, reading whole and by latent.

Synthetic segment: C = 16,384 latents with Zipf densities, L0 ≈ 60, 30 % of a token's latents carried over from the
token before, log-normal activations with a scale per latent, heavy-tailed signed projections. `--benchmark-enable`
times about 10^6 non-zeros; a run without timing checks a tenth of that. Sizes are in each row's `extra_info`, bytes per
non-zero: `token_major` (by_token), `latent_major` (by_latent), `sums` (documents and latents), `ids_bits` in bits.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.records import DocumentTable, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store import ScoreWriter, StoredSegment, open_scores, verify
from gradsae_fast.store.format.codecs import round_significand

NUM_LATENTS = 16_384
L0 = 64
SITE = "model.layers.12"
OBJECTIVE = "next-token"
DOCUMENT_TOKENS = 1000


def zipf_rows(rng: np.random.Generator, num_tokens: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Ascending latent ids of each token."""
    density = 1 / (np.arange(NUM_LATENTS) + 0.01 * NUM_LATENTS) ** 1.05
    order = rng.permutation(NUM_LATENTS)
    edges = np.cumsum(density / density.sum())
    lengths = rng.lognormal(np.log(L0), 0.3, num_tokens).clip(20, 200).astype(int)
    rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for length in lengths:
        kept = rows[-1][rng.random(len(rows[-1])) < 0.3] if rows else np.zeros(0, np.int64)
        drawn = order[np.searchsorted(edges, rng.random(max(0, length - len(kept)))).clip(max=NUM_LATENTS - 1)]
        rows.append(np.unique(np.concatenate([kept, drawn])))
    return rows


def zipf_segment(num_tokens: int) -> SegmentScores:
    """One segment of documents of 1,000 tokens each."""
    rng = np.random.default_rng(0)
    rows = zipf_rows(rng, num_tokens)
    indices = np.concatenate(rows)
    scale = rng.lognormal(0, 0.5, NUM_LATENTS)[indices]
    scores = SparseScores(
        indptr=np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
        indices=indices,
        activation=(scale * rng.lognormal(0, 0.6, len(indices))).astype(np.float32),
        projections={OBJECTIVE: (7e-6 * rng.standard_t(3, len(indices))).astype(np.float32)},
        num_latents=NUM_LATENTS,
    )
    numbers = np.arange(num_tokens, dtype=np.uint32)
    document = numbers // DOCUMENT_TOKENS
    counts = np.bincount(document)
    tokens = TokenTable(
        token_id=rng.integers(0, 50_000, num_tokens, np.uint32),
        document=document,
        position=numbers % DOCUMENT_TOKENS,
        context=numbers % DOCUMENT_TOKENS,
        char_start=4 * (numbers % DOCUMENT_TOKENS),
        char_end=4 * (numbers % DOCUMENT_TOKENS) + 4,
        mask=(numbers % DOCUMENT_TOKENS == 0).astype(np.uint8),
    )
    documents = DocumentTable(
        key=[str(number) for number in range(len(counts))],
        source=["synthetic"] * len(counts),
        row=np.arange(len(counts)),
        num_tokens=counts,
        status=np.zeros(len(counts), np.uint8),
        text=["lorem ipsum"] * len(counts),
        metadata={},
        objectives={OBJECTIVE: np.zeros(len(counts))},
    )
    return SegmentScores(index=0, tokens=tokens, documents=documents, sites={SITE: scores})


@pytest.fixture(scope="module")
def segment(request: pytest.FixtureRequest) -> SegmentScores:
    """About 10^6 non-zeros where they are timed, 10^5 where they are only checked."""
    timed = request.config.getoption("benchmark_enable") or not request.config.getoption("benchmark_disable")
    return zipf_segment(16_000 if timed else 1_600)


def write(path: Path, segment: SegmentScores, precision_bits: int, profile: str) -> StoredSegment:
    """Write a store of this one segment."""
    with ScoreWriter.create_or_resume(
        path, run={}, identity={}, num_segments=1, precision_bits=precision_bits, profile=profile
    ) as writer:
        writer.write(segment)
    return open_scores(path).segments[0]


def check(stored: StoredSegment, segment: SegmentScores, precision_bits: int) -> None:
    """Hold the stored scores to the given ones, in both orders."""
    got, expected = stored.site(SITE).by_token(), segment.sites[SITE]
    np.testing.assert_array_equal(got.indices, expected.indices)
    np.testing.assert_array_equal(got.activation, round_significand(expected.activation, precision_bits))
    latent = int(expected.indices[0])
    tokens, activation, _ = stored.site(SITE).by_latent(latent)
    where = np.flatnonzero(got.indices == latent)
    np.testing.assert_array_equal(tokens, np.searchsorted(got.indptr, where, side="right") - 1)
    np.testing.assert_array_equal(activation, got.activation[where])


def sizes(stored: StoredSegment, num_nonzeros: int) -> dict[str, float]:
    """Bytes per non-zero of each part, metadata included."""
    total: dict[str, float] = defaultdict(float)
    names = {"by_token": "token_major", "by_latent": "latent_major", "documents": "sums", "latents": "sums"}
    for found in stored.commit["objects"]:
        parts = found["key"].split("/")
        if parts[0] == "sites" and len(parts) > 3:
            total[names[parts[2]]] += found["length"] / num_nonzeros
            if parts[2:4] == ["by_token", "indices"]:
                total["ids_bits"] += 8 * found["length"] / num_nonzeros
        total["all"] += found["length"] / num_nonzeros
    return {name: round(value, 3) for name, value in sorted(total.items())}


@pytest.mark.parametrize("precision_bits", [3, 7, 10, 23])
@pytest.mark.parametrize("profile", ["compact", "portable"])
def bench_write(benchmark: Any, tmp_path: Path, segment: SegmentScores, profile: str, precision_bits: int) -> None:
    """Derive, encode, sync, read back and commit one segment."""
    stored = write(tmp_path / "checked", segment, precision_bits, profile)
    check(stored, segment, precision_bits)
    assert verify(tmp_path / "checked") == []
    num_nonzeros = len(segment.sites[SITE].indices)
    benchmark.extra_info |= {"non_zeros": num_nonzeros, **sizes(stored, num_nonzeros)}
    paths = (tmp_path / str(number) for number in range(10_000))
    benchmark.pedantic(lambda: write(next(paths), segment, precision_bits, profile), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("profile", ["compact", "portable"])
def bench_read_whole(benchmark: Any, tmp_path: Path, segment: SegmentScores, profile: str) -> None:
    """Decode all scores of a segment in token order."""
    stored = write(tmp_path / "store", segment, 10, profile)
    check(stored, segment, 10)
    benchmark(lambda: stored.site(SITE).by_token())


@pytest.mark.parametrize("profile", ["compact", "portable"])
def bench_read_latent(benchmark: Any, tmp_path: Path, segment: SegmentScores, profile: str) -> None:
    """Open the store and read one latent: what a cold query pays per segment, the page cache being warm."""
    check(write(tmp_path / "store", segment, 10, profile), segment, 10)
    benchmark(lambda: open_scores(tmp_path / "store").segments[0].site(SITE).by_latent(7))
