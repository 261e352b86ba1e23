"""The store that is asked: scores that follow a Zipf law, cut into many documents with groups to compare.

Scores are those of `benchmarks.growth.store_size`, whose pieces of 1,000 tokens are cut into four documents of 250
here, so that 10^8 non-zeros are some 6,800 documents and two groups of 1,000 can be drawn from them. Segments are cut
as a run would cut them.
"""

from pathlib import Path

import numpy as np

from benchmarks.bench_store import DOCUMENT_TOKENS, OBJECTIVE, SITE
from benchmarks.growth import store_size
from benchmarks.growth.store_size import CHARACTERS, Pool
from gradsae_fast.corpus.plan import plan_segments
from gradsae_fast.records import Array, DocumentTable, Segment, SegmentScores, TokenTable
from gradsae_fast.store import ScoreWriter

TOKENS = 250  # of a document
_CUTS = DOCUMENT_TOKENS // TOKENS
GROUP_DOCUMENTS = 1000


def write_store(path: Path, num_nonzeros: int) -> int:
    """Write (or complete) a store of about so many non-zeros; return its number of documents."""
    pool = Pool.make()
    num_pieces = max(2, round(num_nonzeros / len(pool.indices) * store_size.POOL_DOCUMENTS))
    segments = plan_segments([DOCUMENT_TOKENS] * num_pieces)
    groups = draw_groups(num_pieces * _CUTS)
    identity = {"corpus": "queries", "pieces": num_pieces}
    with ScoreWriter.create_or_resume(path, run={}, identity=identity, num_segments=len(segments)) as writer:
        for segment in segments:
            if segment.index not in writer.committed:
                writer.write(_segment(segment, pool, groups))
        writer.write_dictionary([f"<{number}>" for number in range(TOKENS)], {})
    return num_pieces * _CUTS


def draw_groups(num_documents: int) -> list[str]:
    """Give 1,000 documents (at most a third) to group a, as many to b, and the others to neither."""
    size = min(GROUP_DOCUMENTS, num_documents // 3)
    group = np.array(["a"] * size + ["b"] * size + ["neither"] * (num_documents - 2 * size))
    drawn: list[str] = np.random.default_rng(0).permutation(group).tolist()
    return drawn


def _segment(segment: Segment, pool: Pool, groups: list[str]) -> SegmentScores:
    first = segment.first_document * _CUTS
    numbers = np.arange(first, first + segment.num_documents * _CUTS)
    return SegmentScores(
        index=segment.index,
        tokens=_tokens(len(numbers)),
        documents=DocumentTable(
            key=[f"document {m}" for m in numbers],
            source=["synthetic"] * len(numbers),
            row=numbers,
            num_tokens=np.full(len(numbers), TOKENS, np.uint32),
            status=np.zeros(len(numbers), np.uint8),
            text=[_text(m) for m in numbers.tolist()],
            metadata={"group": [groups[m] for m in numbers], "year": [1900 + int(m) % 120 for m in numbers]},
            objectives={OBJECTIVE: np.zeros(len(numbers))},
        ),
        sites={SITE: pool.scores(segment)},
    )


def _tokens(num_documents: int) -> TokenTable:
    position = np.tile(np.arange(TOKENS, dtype=np.uint32), num_documents)
    return TokenTable(
        token_id=position,
        document=np.repeat(np.arange(num_documents, dtype=np.uint32), TOKENS),
        position=position,
        context=position,
        char_start=CHARACTERS * position,
        char_end=CHARACTERS * position + CHARACTERS - 1,
        mask=(position == 0).astype(np.uint8),
    )


def _text(number: int) -> str:
    """Words of four letters and a space, others in every document, so that texts do not compress to nothing."""
    letters: Array = np.random.default_rng(number).integers(97, 123, (TOKENS, CHARACTERS), np.uint8)
    letters[:, -1] = 32
    return letters.tobytes().decode("ascii")
