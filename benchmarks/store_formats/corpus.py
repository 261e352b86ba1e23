"""All scores of a store as plain arrays, and the same scores written to a store of another precision or profile.

Letters: N tokens, M documents, C latents, Z non-zeros.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gradsae_fast.records import Array, SegmentScores
from gradsae_fast.store import ScoreStore, ScoreWriter, StoredSegment
from gradsae_fast.store.format.codecs import round_significand


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What every format has to keep, in token order, latents ascending inside a token."""

    indptr: Array  # int64 [N+1]
    latent: Array  # uint32 [Z]
    activation: Array  # float32 [Z]
    projection: Array  # float32 [Z]
    row: Array  # uint32 [N], number of the token's document
    position: Array  # uint32 [N], in its document
    num_latents: int  # C

    @property
    def num_nonzeros(self) -> int:
        """Z."""
        return len(self.latent)

    @property
    def token(self) -> Array:
        """The token of every non-zero, uint32 [Z]."""
        return np.repeat(np.arange(len(self.row), dtype=np.uint32), np.diff(self.indptr))

    def rounded(self, precision_bits: int) -> "Scores":
        """The same with so many bits of significand."""
        activation, projection = (round_significand(v, precision_bits) for v in (self.activation, self.projection))
        return replace(self, activation=activation, projection=projection)


def read_scores(store: ScoreStore) -> Scores:
    """Join all segments of a store of one site and one objective. SystemExit for any other store."""
    if len(store.sites) != 1 or len(store.objectives) != 1:
        raise SystemExit(
            f"{store.path} has the sites {store.sites} and objectives {store.objectives}; expected one of each: "
            "extract such a store"
        )
    (site,), (objective,) = store.sites, store.objectives
    parts = [segment.site(site).by_token() for segment in store.segments]
    before = np.cumsum([0, *(segment.num_documents for segment in store.segments)])
    rows = [segment.token_column("document") + first for segment, first in zip(store.segments, before, strict=False)]
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    return Scores(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        latent=np.concatenate([part.indices for part in parts]).astype(np.uint32),
        activation=np.concatenate([part.activation for part in parts]),
        projection=np.concatenate([part.projections[objective] for part in parts]),
        row=np.concatenate(rows).astype(np.uint32),
        position=np.concatenate([segment.token_column("position") for segment in store.segments]),
        num_latents=store.num_latents(site),
    )


def read_segments(store: ScoreStore) -> list[SegmentScores]:
    """The segments of a store of one site and one objective as they were given to its writer."""
    return [_segment(store, segment) for segment in store.segments]


def _segment(store: ScoreStore, segment: StoredSegment) -> SegmentScores:
    (site,) = store.sites
    return SegmentScores(
        index=segment.index,
        tokens=segment.tokens(),
        documents=segment.documents(),
        sites={site: segment.site(site).by_token()},
    )


def write_store(
    path: Path, store: ScoreStore, segments: list[SegmentScores], *, precision_bits: int, profile: str
) -> None:
    """Write the segments of `store` to a new store at `path`, with its run's facts; without its dictionary."""
    with ScoreWriter.create_or_resume(
        path,
        run=store.run,
        identity=store.identity,
        num_segments=store.num_segments,
        precision_bits=precision_bits,
        profile=profile,
        aggregates_include_special=store.aggregates_include_special,
    ) as writer:
        for segment in segments:
            writer.write(segment)


def assert_same(got: Scores, expected: Scores) -> None:
    """Hold two scores to each other, values bit by bit. AssertionError where they differ."""
    for name in ("indptr", "latent", "row", "position"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    for name in ("activation", "projection"):
        mine, its = (getattr(scores, name).view(np.uint32) for scores in (got, expected))
        np.testing.assert_array_equal(mine, its, err_msg=name)
