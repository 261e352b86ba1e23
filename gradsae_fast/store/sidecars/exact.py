"""Exact effects of dense latents, kept beside the scores: one sidecar for each segment.

The folder `exact` is laid out as the store itself: `exact/commits/000012.json` makes the sidecar of segment 12 visible,
which lies in `exact/segments/000012-<attempt>/`; so it is published, resumed and verified like a segment. Its record
names the digest of the segment that it speaks about, and the share of tokens above which a latent was called dense.
Those of segments that a revision put in the place of others lie in `exact/r<revision>-<attempt>/`, laid out so too:
they are written before the revision, and speak about a segment of the store as soon as it is published.

Effects are kept in the unit of the stored value of their objective. For `continuation-prob` that is log p: an answer of
some hundred tokens has a p that float32 cannot hold. Its effect in probability is p - p·exp(-drop), p being the
document's own, which a reader computes in float64.

Letters: M documents of a segment, K dense latents of a site.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex

import numpy as np

from gradsae_fast.errors import BusyError, QueryError, StoreError
from gradsae_fast.store.arrays.encoding import exact_objects
from gradsae_fast.store.arrays.stored import StoredArray
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import EXACT, Array, component, path_of
from gradsae_fast.store.places.durable import remove_temporaries, remove_tree, storage_errors, sync
from gradsae_fast.store.places.links import PlainFolders, refuse_links
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import (
    COMMITS,
    SEGMENTS,
    CommitRecord,
    find_records,
    missing_objects,
    prepare,
    publish_segment,
    read_record,
    record_path,
    remove_uncommitted,
)
from gradsae_fast.store.records.effective import Effective
from gradsae_fast.store.segment import StoredSegment

FOLDER = "exact"
_ROOM = re.compile(r"r(\d{6,})-[0-9a-f]{16}", re.ASCII)
_REMEDY = "run `gradsae repair`, then extract with --exact-dense again"
_LATENTS, _DROP = (spec.name for spec in EXACT)


class ExactDense:
    """The exact effects of a store's dense latents; made by `ScoreStore.exact_dense` from records that are `current`.

    Attributes:
        share: a latent is dense that fires on more than this share of the tokens that count.
        latents: ids int64 [K] of each site's dense latents, ascending.
        missing: committed segments that have no effects (yet).
        objectives: that effects are there of.
    """

    def __init__(
        self, folder: Place, segments: Sequence[StoredSegment], found: Mapping[int, tuple[Place, CommitRecord]]
    ) -> None:
        records = {index: record for index, (_, record) in found.items()}
        self._folder = folder
        self._rooms = {index: room for index, (room, _) in found.items()}
        self._segments = {segment.index: segment for segment in segments}
        self.share = float(next(iter(records.values())).facts["share"])
        self._records = {index: record for index, record in records.items() if record.facts["share"] == self.share}
        self.objectives = list(next(iter(records.values())).facts["objectives"])
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
        latents_K = self._read(segment, site, _LATENTS).astype(np.int64)
        num_latents = self._segments[segment].site(site).num_latents
        inside = len(latents_K) == 0 or 0 <= latents_K[0] <= latents_K[-1] < num_latents
        if not inside or (latents_K[1:] <= latents_K[:-1]).any():
            raise StoreError(f"{self._folder}, segment {segment}, {site}: ids of latents that do not ascend; {_REMEDY}")
        return latents_K

    def drops(self, segment: int, site: str, objective: str) -> Array:
        """Return value - value(without the latent), float64 [M, K], in the unit of the objective's stored value.

        0 where a latent fires on no token that counts; NaN where the document's objective is NaN.

        Raises:
            QueryError: no effects of this segment, site or objective.
            BusyError: they were deleted since, to be measured anew.
            StoreError: damaged data.
        """
        shape = (self._segments[segment].num_documents, len(self.latents_of(segment, site)))
        drops = self._read(segment, site, path_of(_DROP, objective), objective).astype(np.float64)
        if len(drops) != shape[0] * shape[1]:
            what = f"{len(drops)} effects; expected {shape[0]} x {shape[1]}"
            raise StoreError(f"{self._folder}, segment {segment}, {site}: {what}; {_REMEDY}")
        return drops.reshape(shape)

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
        room = self._rooms[segment]
        try:
            return _array(room, record, site, array).read()
        except StoreError as error:
            if _is_there(room, segment, record):
                raise
            raise BusyError(
                f"{self._folder}: another process has deleted the effects of segment {segment} to measure them anew; "
                "wait for its end, then open the store again"
            ) from error


class ExactWriter:
    """Writes the sidecars of one pass, a segment once; for the holder of the writer's lock.

    Sidecars of another share, of other dense latents or of segments that are no longer the store's are deleted, and so
    is what a killed pass left half-written; but in a bucket, where it may be what another process is writing.

    Raises:
        StoreError: a damaged sidecar, or a disk that is full or read-only.
    """

    def __init__(
        self, store: Place, segments: Sequence[StoredSegment], profile: str, share: float, dense: Mapping[str, Array]
    ) -> None:
        self.share = share
        self.dense = dict(dense)
        self._folder = store / FOLDER
        self._profile = profile
        with storage_errors(store):
            prepare(self._folder)
            remove_temporaries(self._folder / COMMITS)
            records = _read_room(self._folder)
            kept = {segment.index for segment in segments if self._fits(records.get(segment.index), segment)}
            _remove_sidecars(self._folder, {index: records[index] for index in records.keys() - kept})
            if isinstance(store, Path):
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


def rooms(store: Place) -> list[Place]:
    """Return the folders that are laid out for sidecars: of committed segments, and of those of each revision."""
    found = (store / FOLDER, *_all_rooms(store))  # in a bucket one with objects, and no record yet, is whole
    return [room for room in found if (room / COMMITS if isinstance(room, Path) else room).is_dir()]


def _all_rooms(store: Place) -> list[Place]:
    """The folders of revisions, those too that were not laid out yet."""
    folder = store / FOLDER
    if not folder.is_dir():
        return []
    refuse_links(folder)
    return [folder / name for name in sorted(path.name for path in folder.iterdir()) if _ROOM.fullmatch(name)]


def new_room(store: Place, revision: int) -> Place:
    """Return a new folder for the sidecars of the segments of a revision; it is not made."""
    return store / FOLDER / f"r{revision:06d}-{token_hex(8)}"


def read_records(store: Place, segments: Sequence[StoredSegment]) -> dict[int, tuple[Place, CommitRecord]]:
    """Return folder and record of the sidecars that speak about these segments, not of others that had their numbers.

    What they list is there with its length. A pass with another share deletes sidecars while others read; one that
    vanishes meanwhile is left out.

    Raises:
        StoreError: damaged.
        FormatError: written by a newer release.
    """
    of = {segment.index: segment for segment in segments}
    return {
        index: (room, record)
        for room in rooms(store)
        for index, record in _read_room(room).items()
        if _is_of(record, of.get(index))
    }


def _read_room(folder: Place) -> dict[int, CommitRecord]:
    refuse_links(folder)
    records = {}
    for index, path in find_records(folder).items():
        try:
            record = read_record(path)
        except FileNotFoundError:
            continue
        _check_facts(record, path)
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


def remove_stale(store: Place, effective: Effective, *, alone: bool) -> None:
    """Delete sidecars of segments that were replaced and, where no other process writes, of unpublished revisions.

    Those of committed segments that nothing replaced stay, whatever they speak about: the next pass decides.
    """
    digests = {record.digest for record in effective.records.values()}
    whole = rooms(store)
    for room in whole:
        of_revision = _ROOM.fullmatch(room.name)
        if of_revision and not alone and int(of_revision[1]) > effective.num_revisions:
            continue
        sync(room / COMMITS)  # a killed process may have removed records and not their folders
        records = _read_room(room)
        gone = {index: record for index, record in records.items() if record.facts["of"] not in digests}
        stale = {index: record for index, record in gone.items() if of_revision or index in effective.replaced}
        _remove_sidecars(room, stale)
        kept = [record for index, record in records.items() if index not in stale]
        if of_revision and not kept:
            remove_tree(room)
            sync(room.parent)
        elif alone and (room / SEGMENTS).is_dir():
            remove_uncommitted(room, kept)
    if alone:
        for path in {*_all_rooms(store)}.difference(whole):  # killed before they were laid out
            remove_tree(path)


def _remove_sidecars(room: Place, records: Mapping[int, CommitRecord]) -> None:
    """Delete sidecars, out of sight for good first: no power cut brings a record back whose objects are gone."""
    if records:
        for index in records:
            record_path(room, index).unlink()
        sync(room / COMMITS)
        for record in records.values():
            remove_tree(room / record.folder)
        sync(room / SEGMENTS)


def _check_facts(record: CommitRecord, path: Place) -> None:
    fields = Fields(record.facts, path)
    fields.text("of")
    fields.number("share")
    fields.texts("sites")
    fields.texts("objectives")


def _is_there(folder: Place, index: int, record: CommitRecord) -> bool:
    """Whether a record is still the one of its segment."""
    try:
        return read_record(record_path(folder, index)).folder == record.folder
    except FileNotFoundError:
        return False


def _is_of(record: CommitRecord, segment: StoredSegment | None) -> bool:
    return segment is not None and record.facts["of"] == segment.digest


def _array(folder: Place, record: CommitRecord, site: str, name: str) -> StoredArray:
    path = f"{record.folder}/sites/{component(site)}/{name}"
    PlainFolders(folder).check(path)
    return StoredArray(folder / path, f"{folder}, {path}")
