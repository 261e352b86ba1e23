"""A small corpus of scores kept twice: as dense arrays, which a test sums by hand, and as a store.

Letters: N tokens and M documents of the whole corpus, C latents. Values are small multiples of 1/8, so that neither the
store's rounding nor a sum's order changes a bit and rankings have true ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.records import (
    Array,
    DocumentStatus,
    DocumentTable,
    SegmentScores,
    SparseScores,
    TokenMask,
    TokenTable,
)
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores

SITES = ("model.layers.3", "model.layers.5")
OBJECTIVES = ("next-token", "entropy")
NUM_LATENTS = 12
SEGMENT_DOCUMENTS = (4, 3, 1, 5, 3)
PARTIES = ("Republican", "Democratic", "none", "Democratic-Republican")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Everything that is in the store, dense and in corpus order."""

    activation: dict[str, Array]  # site -> float32 [N, C]; 0 where not active
    projection: dict[tuple[str, str], Array]  # (site, objective) -> float32 [N, C]; 0 where not active
    document_N: Array  # int64, document of the corpus
    position_N: Array
    mask_N: Array  # uint8
    words: list[str]  # [N]
    keys: list[str]  # [M]
    metadata: dict[str, list[Any]]  # column -> [M]
    objective_values: dict[str, Array]  # objective -> float64 [M]
    segment_documents: tuple[int, ...]
    sites: tuple[str, ...] = SITES
    objectives: tuple[str, ...] = OBJECTIVES
    status: list[DocumentStatus] = field(default_factory=list)

    def influence(self, site: str, objective: str) -> Array:
        """g, float64 [N, C], in the objective's unit."""
        influence_NC = (self.activation[site] * self.projection[site, objective]).astype(np.float64)
        if objective == "continuation-prob":
            influence_NC *= np.exp(self.objective_values[objective])[self.document_N][:, None]
        return influence_NC

    def counted(self, *, include_special: bool = False) -> Array:
        """Tokens that count, bool [N]."""
        return (self.mask_N == 0) | include_special

    def tokens_of(self, documents: Sequence[int], *, include_special: bool = False) -> Array:
        """Counted tokens of some documents, as row numbers."""
        return np.flatnonzero(np.isin(self.document_N, documents) & self.counted(include_special=include_special))

    def sums(
        self, documents: Sequence[int], site: str, objective: str, *, include_special: bool = False
    ) -> dict[str, Array]:
        """The document sums by their definitions, each [C]."""
        rows = self.tokens_of(documents, include_special=include_special)
        a, g = self.activation[site][rows].astype(np.float64), self.influence(site, objective)[rows]
        active = a != 0
        return {
            "influence": g.sum(0),
            "positive": np.maximum(g, 0).sum(0),
            "absolute": np.abs(g).sum(0),
            "activation": a.sum(0),
            "num_active": active.sum(0),
            "frequency": active.sum(0) / max(len(rows), 1),
            "max_influence": np.where(active, g, -np.inf).max(0, initial=-np.inf),
            "max_activation": np.where(active, a, -np.inf).max(0, initial=-np.inf),
        }


def make_world(
    *,
    seed: int = 0,
    objectives: tuple[str, ...] = OBJECTIVES,
    sites: tuple[str, ...] = SITES,
    segment_documents: tuple[int, ...] = SEGMENT_DOCUMENTS,
    columns: tuple[str, ...] | None = None,
) -> World:
    """Make a corpus: documents of 3 to 14 tokens (the third is empty), a masked BOS each, some masked sinks.

    `columns` names the metadata columns to keep.
    """
    rng = np.random.default_rng(seed)
    num_documents = sum(segment_documents)
    lengths = rng.integers(3, 15, num_documents)
    lengths[2:3] = 0
    document_N = np.repeat(np.arange(num_documents), lengths)
    position_N = np.concatenate([np.arange(length) for length in lengths])
    mask_N = np.where(position_N == 0, TokenMask.SPECIAL, rng.choice([0, 0, 0, 0, TokenMask.NORM], len(document_N)))
    active = {site: rng.random((len(document_N), NUM_LATENTS)) < 0.3 for site in sites}
    for active_NC in active.values():
        active_NC[:, 7] = False  # a latent that never fires
        active_NC[:, 8] = mask_N != 0  # one that fires on masked tokens only
    signs = {site: [1, -1] if site == sites[-1] else [1] for site in sites}  # the last site has a signed SAE
    metadata: dict[str, list[Any]] = {
        "party": [PARTIES[m % len(PARTIES)] for m in range(num_documents)],
        "year": [int(year) for year in 1900 + rng.integers(0, 6, num_documents) * 20],
        "weight": [None if m % 4 == 3 else m / 2 for m in range(num_documents)],
        "revised": [m % 2 == 0 for m in range(num_documents)],
        "tags": [["a", m] for m in range(num_documents)],
        "score": [f"s{m}" for m in range(num_documents)],
    }
    return World(
        activation={
            site: _eighths(rng, active[site], 1, 9) * rng.choice(signs[site], active[site].shape) for site in sites
        },
        projection={(site, name): _eighths(rng, active[site], -4, 5) for site in sites for name in objectives},
        document_N=document_N,
        position_N=position_N,
        mask_N=mask_N.astype(np.uint8),
        words=["<bos>" if p == 0 else f"w{m}.{p}" for m, p in zip(document_N, position_N, strict=True)],
        keys=[f"doc-{m:02d}" for m in range(num_documents)],
        metadata={name: values for name, values in metadata.items() if columns is None or name in columns},
        objective_values={name: -rng.random(num_documents) * 3 for name in objectives},
        segment_documents=segment_documents,
        sites=sites,
        objectives=objectives,
        status=[DocumentStatus.EMPTY if length == 0 else DocumentStatus.SCORED for length in lengths],
    )


def _eighths(rng: np.random.Generator, active: Array, low: int, high: int) -> Array:
    return (rng.integers(low, high, active.shape) / 8 * active).astype(np.float32)


def make_segments(world: World) -> list[SegmentScores]:
    """Cut the corpus into the segments that a writer takes."""
    edges = np.concatenate([[0], np.cumsum(world.segment_documents)])
    return [_segment(world, index, int(edges[index]), int(edges[index + 1])) for index in range(len(edges) - 1)]


def _segment(world: World, index: int, first: int, last: int) -> SegmentScores:
    rows = np.flatnonzero((world.document_N >= first) & (world.document_N < last))
    texts, start, end = _texts(world, range(first, last))
    tokens = TokenTable(
        token_id=(rows % 50).astype(np.uint32),
        document=(world.document_N[rows] - first).astype(np.uint32),
        position=world.position_N[rows].astype(np.uint32),
        context=(world.position_N[rows] % 5).astype(np.uint32),
        char_start=start,
        char_end=end,
        mask=world.mask_N[rows],
    )
    documents = DocumentTable(
        key=world.keys[first:last],
        source=["corpus.jsonl"] * (last - first),
        row=np.arange(first, last),
        num_tokens=np.bincount(world.document_N[rows] - first, minlength=last - first).astype(np.uint32),
        status=np.array(world.status[first:last], np.uint8),
        text=texts,
        metadata={name: column[first:last] for name, column in world.metadata.items()},
        objectives={name: values[first:last] for name, values in world.objective_values.items()},
    )
    sites = {site: _sparse(world, site, rows) for site in world.sites}
    return SegmentScores(index=index, tokens=tokens, documents=documents, sites=sites)


def _texts(world: World, documents: range) -> tuple[list[str], Array, Array]:
    """Write each document as its words with single spaces; the BOS has no characters."""
    texts, start, end = [], list[int](), list[int]()
    for document in documents:
        text = ""
        for row in np.flatnonzero(world.document_N == document):
            word = "" if world.words[row] == "<bos>" else world.words[row]
            text += " " if word and text else ""
            start.append(len(text) if word else 0)
            text += word
            end.append(len(text) if word else 0)
        texts.append(text)
    return texts, np.array(start, np.uint32), np.array(end, np.uint32)


def _sparse(world: World, site: str, rows: Array) -> SparseScores:
    activation_NC = world.activation[site][rows]
    row, latent = np.nonzero(activation_NC)
    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum(np.count_nonzero(activation_NC, axis=1))]).astype(np.int64),
        indices=latent.astype(np.int32),
        activation=activation_NC[row, latent],
        projections={name: world.projection[site, name][rows][row, latent] for name in world.objectives},
        num_latents=activation_NC.shape[1],
    )


def write_store(path: Path, world: World, *, aggregates_include_special: bool = False) -> ScoreStore:
    """Write the corpus with the real writer and open it."""
    return write_segments(path, make_segments(world), aggregates_include_special=aggregates_include_special)


def write_segments(
    path: Path, segments: list[SegmentScores], *, aggregates_include_special: bool = False
) -> ScoreStore:
    """Write segments with the real writer and open the store."""
    writer = ScoreWriter.create_or_resume(
        path,
        run={},
        identity={"corpus": "a test"},
        num_segments=len(segments),
        aggregates_include_special=aggregates_include_special,
    )
    with writer:
        for segment in segments:
            writer.write(segment)
        writer.write_dictionary([f"<token {number}>" for number in range(40)], {})
    return open_scores(path)


class MakeStore:
    """Builds one-off corpora: a fixture for tests that need another than the shared one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, world: World) -> ScoreStore:
        self._count += 1
        return write_store(self._folder / f"{self._count}.gradsae", world)

    def from_segments(self, segments: list[SegmentScores]) -> ScoreStore:
        """Write segments that a test has changed."""
        return write_segments(self._folder / "changed.gradsae", segments)

    def segments(self, world: World) -> list[SegmentScores]:
        """Cut a corpus into segments."""
        return make_segments(world)

    def empty(self) -> ScoreStore:
        """Make a store in which nothing is committed yet."""
        path = self._folder / "empty.gradsae"
        ScoreWriter.create_or_resume(path, run={}, identity={}, num_segments=2).close()
        return open_scores(path)

    def world(self, *, objective: str = "next-token", segment_documents: tuple[int, ...] = SEGMENT_DOCUMENTS) -> World:
        """Make a corpus with the first site, one objective and one metadata column, `party`: quick to write."""
        return make_world(
            sites=SITES[:1], objectives=(objective,), segment_documents=segment_documents, columns=("party",)
        )


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    return MakeStore(tmp_path)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return write_store(tmp_path_factory.mktemp("store") / "scores.gradsae", world)


@pytest.fixture(scope="session")
def special_store(world: World, tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    """The same corpus with sums that count masked tokens."""
    path = tmp_path_factory.mktemp("store") / "special.gradsae"
    return write_store(path, world, aggregates_include_special=True)
