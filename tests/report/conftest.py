"""Small stores to report on: one with plain words, and one in which every text is hostile.

Values are random with many ties; two segments, three latents that never fire, masked first tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.records import (
    Array,
    DocumentTable,
    SegmentScores,
    SparseScores,
    TokenMask,
    TokenTable,
)
from gradsae_fast.report import ReportSummary, write_report
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores

NUM_LATENTS = 40
SILENT = (7, 21, 39)
SCRIPT = "<script>alert('x')</script>"
HOSTILE = (
    SCRIPT,
    "</style></title></textarea><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)' x=\"",
    "\u202eevil\u202c \u2066isolate\u2069 \u200f\u200e",
    "\x00\x01\x1b[31m\x7f\x85\u2028",
    "\ud800\udfff",
    "javascript:alert(1) {{ 7*7 }} {% raw %} &lt;b&gt; <!-- --> ]]>",
    "<svg onload=alert(1)>",
    "e" + "\u0301" * 10_000,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A document: its words, which are its tokens, and what is known of it."""

    key: str
    words: Sequence[str]
    metadata: dict[str, Any] = field(default_factory=dict)


def write_store(
    path: Path,
    texts: Sequence[Text],
    *,
    site: str = "model.layers.3",
    objective: str = "next-token",
    vocabulary: Sequence[str] = ("<bos>",),
    identity: dict[str, Any] | None = None,
    rate: float = 1.0,
) -> ScoreStore:
    """Write texts with random scores, in two segments, with the real writer; `rate` scales how often latents fire."""
    rng = np.random.default_rng(3)
    half = (len(texts) + 1) // 2
    parts = [texts[:half], texts[half:]]
    writer = ScoreWriter.create_or_resume(path, run={}, identity=identity or {"corpus": "a test"}, num_segments=2)
    with writer:
        for index, part in enumerate(parts):
            writer.write(_segment(rng, index, part, site, objective, rate))
        writer.write_dictionary(list(vocabulary), {})
    return open_scores(path)


def _segment(
    rng: np.random.Generator, index: int, texts: Sequence[Text], site: str, objective: str, rate: float
) -> SegmentScores:
    lengths = [1 + len(text.words) for text in texts]  # a BOS without characters in front
    document_N = np.repeat(np.arange(len(texts)), lengths)
    position_N = np.concatenate([np.arange(length) for length in lengths])
    ends = [np.cumsum([0, *map(len, text.words)]) for text in texts]
    start_N = np.concatenate([[0, *end[:-1]] for end in ends])
    columns = sorted({name for text in texts for name in text.metadata})
    return SegmentScores(
        index=index,
        tokens=TokenTable(
            token_id=np.where(position_N == 0, 0, 1 + position_N % 60).astype(np.uint32),
            document=document_N.astype(np.uint32),
            position=position_N.astype(np.uint32),
            context=position_N.astype(np.uint32),
            char_start=start_N.astype(np.uint32),
            char_end=np.concatenate([[0, *end[1:]] for end in ends]).astype(np.uint32),
            mask=np.where(position_N == 0, TokenMask.SPECIAL, 0).astype(np.uint8),
        ),
        documents=DocumentTable(
            key=[text.key for text in texts],
            source=["corpus.jsonl"] * len(texts),
            row=np.arange(len(texts)),
            num_tokens=np.array(lengths, np.uint32),
            status=np.zeros(len(texts), np.uint8),
            text=["".join(text.words) for text in texts],
            metadata={name: [text.metadata.get(name) for text in texts] for name in columns},
            objectives={objective: -np.arange(1.0, len(texts) + 1)},
        ),
        sites={site: _scores(rng, len(document_N), objective, rate)},
    )


def _scores(rng: np.random.Generator, num_tokens: int, objective: str, rate: float) -> SparseScores:
    active_NC = rng.random((num_tokens, NUM_LATENTS)) < rate * np.linspace(0.02, 0.6, NUM_LATENTS)
    active_NC[:, SILENT] = False
    row, latent = np.nonzero(active_NC)
    eighths: Array = rng.integers(-8, 9, len(row)) / 8
    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum(active_NC.sum(1))]).astype(np.int64),
        indices=latent.astype(np.int32),
        activation=(rng.integers(1, 9, len(row)) / 8).astype(np.float32),
        projections={objective: eighths.astype(np.float32)},
        num_latents=NUM_LATENTS,
    )


def plain_texts() -> list[Text]:
    """Twelve documents of 20 to 42 words."""
    parties = ("Whig", "Federalist", "None")
    return [
        Text(
            key=f"speech-{m:02d}",
            words=[f"w{m}.{n} " for n in range(20 + 2 * m)],
            metadata={"party": parties[m % 2] if m else parties[2], "year": 1800 + m, "odd": m % 2 == 1},
        )
        for m in range(12)
    ]


def hostile_texts() -> list[Text]:
    """Nine documents whose keys, words, column names and values are hostile, and a word of a million characters."""
    return [
        Text(
            key=f"{bad}{m}",
            words=[*HOSTILE, f"{bad * (1_000_000 // len(bad))}", *(["\n", "plain "] * 20), bad],
            metadata={
                f"{column} {m}": bad[:100] * 100 for column in HOSTILE if "\ud800" not in column and len(column) < 100
            }
            | {"group": f"<b>{m % 2}", "half": "x\ud800" if m % 2 else "\u202ey"},
        )
        for m, bad in enumerate(HOSTILE)
    ]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return write_store(tmp_path_factory.mktemp("report") / "speeches.gradsae", plain_texts())


@pytest.fixture(scope="session")
def audit(store: ScoreStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of all latents that fire, with groups and labels."""
    folder = tmp_path_factory.mktemp("report") / "audit"
    labels = folder.parent / "labels.csv"
    labels.write_text("latent,label\n30,names of months\n", encoding="utf-8")
    write_report(store, folder, documents=5, contexts=6, groups=["party", ("year<1806", "year>=1806")], labels=labels)
    return folder


@pytest.fixture(scope="session")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return write_store(
        tmp_path_factory.mktemp("report") / f"{SCRIPT.replace('/', '')}\u202e.gradsae",
        hostile_texts(),
        site=f"layer {SCRIPT}",
        objective=f"mine {SCRIPT}\u202e",
        vocabulary=[f"{bad}{number}" for number in range(10) for bad in HOSTILE],
        identity={"method": {SCRIPT: SCRIPT}, "versions": {SCRIPT: "\u202e"}},
    )


@pytest.fixture(scope="session")
def hostile_audit(hostile_store: ScoreStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "hostile"
    labels = folder.parent / "hostile.csv"
    rows = "".join(f'{latent},"{SCRIPT * 20}\u202e"\n' for latent in range(NUM_LATENTS))
    labels.write_text(f"latent,label\n{rows}", encoding="utf-8")
    write_report(hostile_store, folder, groups=["group", "half"], labels=labels)
    return folder


@pytest.fixture
def report(store: ScoreStore, tmp_path: Path) -> Callable[..., ReportSummary]:
    """Write an audit of the plain store to a folder of this test."""

    def write(name: str = "audit", **settings: Any) -> ReportSummary:
        return write_report(store, tmp_path / name, **settings)

    return write


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., ScoreStore]:
    """Write the plain texts to a store of this test."""

    def make(**settings: Any) -> ScoreStore:
        return write_store(tmp_path / "speeches.gradsae", plain_texts(), **settings)

    return make
