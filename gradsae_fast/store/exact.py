"""Exact effects of dense latents, kept beside the scores: one sidecar for each segment.

The folder `exact` is laid out as the store itself: `exact/commits/000012.json` makes the sidecar of segment 12 visible,
which lies in `exact/segments/000012-<attempt>/`; so it is published, resumed and verified like a segment. Its record
names the digest of the segment that it speaks about, and the share of tokens above which a latent was called dense.

Effects are kept in the unit of the stored value of their objective. For `continuation-prob` that is log p: an answer of
some hundred tokens has a p that float32 cannot hold. Its effect in probability is p - p·exp(-drop), p being the
document's own, which a reader computes in float64.

Letters: M documents of a segment, K dense latents of a site.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gradsae_fast.errors import BusyError, QueryError, StoreError
from gradsae_fast.store.arrays import StoredArray
from gradsae_fast.store.commits import (
    COMMITS,
    CommitRecord,
    find_records,
    missing_objects,
    prepare,
    publish_segment,
    read_record,
    record_path,
    remove_uncommitted,
)
from gradsae_fast.store.durable import make_folder, remove_temporaries, storage_errors
from gradsae_fast.store.encoding import exact_objects
from gradsae_fast.store.layout import EXACT, Array, component, path_of
from gradsae_fast.store.segment import StoredSegment

FOLDER = "exact"
_LATENTS, _DROP = (spec.name for spec in EXACT)


class ExactDense:
    """The exact effects of a store's dense latents; made by `ScoreStore.exact_dense` from records that are `current`.

    Attributes:
        share: a latent is dense that fires on more than this share of the tokens that count.
        latents: ids int64 [K] of each site's dense latents, ascending.
        missing: committed segments that have no effects (yet).
    """

    def __init__(self, folder: Path, segments: Sequence[StoredSegment], records: Mapping[int, CommitRecord]) -> None:
        self._folder = folder
        self._segments = {segment.index: segment for segment in segments}
        self.share = float(next(iter(records.values())).facts["share"])
        self._records = {index: record for index, record in records.items() if record.facts["share"] == self.share}
        self.missing = tuple(index for index in self._segments if index not in self._records)
        self.latents = {
            site: self.latents_of(index, site)
            for index, record in list(self._records.items())[:1]
            for site in record.facts["sites"]
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of all effects."""
        return sum(record.num_bytes for record in self._records.values())

    def latents_of(self, segment: int, site: str) -> Array:
        """Return the ids int64 [K] of the dense latents that were measured at a site of a segment.

        Raises:
            QueryError: no effects of this segment, or no such site.
            BusyError: they were deleted since, to be measured anew.
            StoreError: damaged data.
        """
        return self._read(segment, site, _LATENTS).astype(np.int64)

    def drops(self, segment: int, site: str, objective: str) -> Array:
        """Return value - value(without the latent), float64 [M, K], in the unit of the objective's stored value.

        0 where a latent fires on no token that counts; NaN where the document's objective is NaN.

        Raises:
            QueryError: no effects of this segment, site or objective.
            BusyError: they were deleted since, to be measured anew.
            StoreError: damaged data.
        """
        shape = (self._segments[segment].num_documents, len(self.latents_of(segment, site)))
        return self._read(segment, site, path_of(_DROP, objective), objective).astype(np.float64).reshape(shape)

    def __repr__(self) -> str:
        dense = ", ".join(f"{len(latents_K)} at {site}" for site, latents_K in self.latents.items())
        return f"<ExactDense {self._folder}: latents above {self.share:.3g} of the tokens: {dense or 'none'}>"

    def _read(self, segment: int, site: str, array: str, objective: str | None = None) -> Array:
        record = self._records.get(segment)
        if record is None:
            raise QueryError(f"{self._folder} has no effects of segment {segment}; it lacks {list(self.missing)}")
        for what, name, known in (("site", site, "sites"), ("objective", objective, "objectives")):
            if name is not None and name not in record.facts[known]:
                raise QueryError(f"{self._folder} has no {what} {name!r}; it has {', '.join(record.facts[known])}")
        try:
            return _array(self._folder, record, site, array).read()
        except StoreError as error:
            if _is_there(self._folder, segment, record):
                raise
            raise BusyError(
                f"{self._folder}: another process has deleted the effects of segment {segment} to measure them anew; "
                "wait for its end, then open the store again"
            ) from error


class ExactWriter:
    """Writes the sidecars of one pass, a segment once; for the holder of the writer's lock.

    Sidecars of another share, of other dense latents or of segments that are no longer the store's are deleted, and so
    is what a killed pass left half-written.

    Raises:
        StoreError: a damaged sidecar, or a disk that is full or read-only.
    """

    def __init__(
        self, store: Path, segments: Sequence[StoredSegment], profile: str, share: float, dense: Mapping[str, Array]
    ) -> None:
        self.share = share
        self.dense = dict(dense)
        self._folder = store / FOLDER
        self._profile = profile
        with storage_errors(store):
            make_folder(self._folder)
            prepare(self._folder)
            remove_temporaries(self._folder / COMMITS)
            records = read_records(store)
            kept = {segment.index for segment in segments if self._fits(records.get(segment.index), segment)}
            for index in records.keys() - kept:
                record_path(self._folder, index).unlink()
            remove_uncommitted(self._folder, [records[index] for index in kept])
        self._committed = kept

    @property
    def committed(self) -> frozenset[int]:
        """Segments that are measured; the others are still to do."""
        return frozenset(self._committed)

    def write(self, segment: StoredSegment, drops: Mapping[tuple[str, str], Array]) -> CommitRecord:
        """Write the effects [M, K] of a segment by site and objective: wholly and durably, or not at all.

        Raises:
            StoreError: a full or broken disk.
        """
        num_latents = {site: segment.site(site).num_latents for site in self.dense}
        facts = {
            "of": segment.digest,
            "share": self.share,
            "sites": list(self.dense),
            "objectives": list(dict.fromkeys(objective for _, objective in drops)),
        }
        with storage_errors(self._folder):
            objects = exact_objects(num_latents, self.dense, drops, self._profile)
            record = publish_segment(self._folder, segment.index, objects, facts)
        self._committed.add(segment.index)
        return record

    def _fits(self, record: CommitRecord | None, segment: StoredSegment) -> bool:
        if record is None or not _is_of(record, segment) or record.facts["share"] != self.share:
            return False
        return all(
            np.array_equal(_array(self._folder, record, site, _LATENTS).read(), latents_K)
            for site, latents_K in self.dense.items()
        )


def read_records(store: Path) -> dict[int, CommitRecord]:
    """Return the records of a store's sidecars by segment; what they list is there with its length.

    A pass with another share deletes sidecars while others read; one that vanishes meanwhile is left out.

    Raises:
        StoreError: damaged.
        FormatError: written by a newer release.
    """
    folder = store / FOLDER
    if not (folder / COMMITS).is_dir():
        return {}
    records = {}
    for index, path in find_records(folder).items():
        try:
            record = read_record(path)
        except FileNotFoundError:
            continue
        faults = missing_objects(folder, record)
        if not faults:
            records[index] = record
        elif _is_there(folder, index, record):
            key, what = faults[0]
            raise StoreError(
                f"{folder}: the effects of segment {index} are damaged: {record.folder}/{key} {what}; run `gradsae "
                "repair`, then extract with --exact-dense again"
            )
    return records


def current(records: Mapping[int, CommitRecord], segments: Sequence[StoredSegment]) -> dict[int, CommitRecord]:
    """Return the records that speak about these segments, not about others that had their numbers."""
    of = {segment.index: segment for segment in segments}
    return {index: record for index, record in records.items() if _is_of(record, of.get(index))}


def _is_there(folder: Path, index: int, record: CommitRecord) -> bool:
    """Whether a record is still the one of its segment."""
    try:
        return read_record(record_path(folder, index)).folder == record.folder
    except FileNotFoundError:
        return False


def _is_of(record: CommitRecord, segment: StoredSegment | None) -> bool:
    return segment is not None and record.facts["of"] == segment.digest


def _array(folder: Path, record: CommitRecord, site: str, name: str) -> StoredArray:
    path = f"{record.folder}/sites/{component(site)}/{name}"
    return StoredArray(folder / path, f"{folder}, {path}")
