"""The stores that a merge reads, and what they come to together: generations, and where each segment is copied from.

Runs of one identity are parts of one generation, wherever they were computed; runs that differ in their documents alone
become generations one after the other. A generation that was revised (documents dropped, segments compacted) has
segments that no plan has, so its effective segments are numbered anew and it is closed: whole, and never resumed.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradsae_fast.counts import counted
from gradsae_fast.errors import CorpusError, IdentityError, StoreError
from gradsae_fast.store.arrays.stored import METADATA, encode_group
from gradsae_fast.store.keys import KnownKeys, repeated_keys
from gradsae_fast.store.places.ahead import concurrently
from gradsae_fast.store.places.links import PlainFolders, read_plain, refuse_links
from gradsae_fast.store.places.place import Place, key_below
from gradsae_fast.store.records.commits import CommitRecord, SegmentSummary, read_record
from gradsae_fast.store.records.effective import Effective, read_effective
from gradsae_fast.store.records.facts import read_facts
from gradsae_fast.store.records.generations import (
    Generation,
    check_comparable,
    generation_of_run,
    read_generations,
    refuse_stray_segments,
)
from gradsae_fast.store.records.identity import compare_runs
from gradsae_fast.store.records.objects import ObjectRecord, describe
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.dictionary import dictionary_record

_TOGETHER = 16  # objects of a segment that are in memory at a time, where they come out of a bucket,
_BYTES_TOGETHER = 1 << 28  # and their bytes, where it is more than one


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A store that is merged; only read."""

    place: Place
    generations: tuple[Generation, ...]
    effective: Effective
    plain: PlainFolders

    def segment(self, number: int) -> StoredSegment:
        """Return a segment as readers of the source see it."""
        return StoredSegment(self.place, number, SegmentSummary.of(self.effective.records[number]))

    def read(self, record: CommitRecord, found: ObjectRecord, room: Place | None = None) -> bytes:
        """Return the bytes of an object of a record, whose folder is below `room` or else below the store.

        Raises:
            StoreError: they are not those that were committed, lie behind a link, or take more memory than there is.
        """
        path = (room or self.place) / record.folder / found.key
        self.plain.check(key_below(path.parent, self.place))
        try:
            data = read_plain(path, found.length)
        except FileNotFoundError as error:
            raise _damaged(self.place, str(path), "is missing") from error
        except MemoryError as error:
            raise StoreError(f"{path} has {found.length:,} bytes, which is more memory than there is") from error
        if describe(found.key, data) != found:
            raise _damaged(self.place, str(path), "is not what was committed")
        return data

    def copied(self, record: CommitRecord, room: Place | None = None) -> Iterator[tuple[str, bytes]]:
        """Yield key and bytes of every object of a record, one at a time; out of a bucket some are read together.

        Raises:
            StoreError: as `read`.
        """
        for batch in _batches(record.objects):
            read = concurrently(self.place, lambda found: self.read(record, found, room), batch)
            yield from zip((found.key for found in batch), read, strict=True)

    def facts(self, generation: Generation, name: str) -> dict[str, Any] | None:
        """Return a sidecar of a generation, of its own or else of the store: `plan` has no other one, `gate` may."""
        own = read_facts(self.place, generation.name_of(name))
        return read_facts(self.place, name) if own is None and name == "gate" else own


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One segment of a source."""

    source: Source
    number: int

    @property
    def record(self) -> CommitRecord:
        """Its commit record, or that of what was put in its place."""
        return self.source.effective.records[self.number]

    def renumbered_root(self, number: int) -> bytes:
        """Return the object that says which segment it is, for another number."""
        root = next(found for found in self.record.objects if found.key == METADATA)
        data = self.source.read(self.record, root)
        if number == self.number:
            return data
        return encode_group({**json.loads(data)["attributes"], "segment": number})

    def objects(self, number: int) -> Iterator[tuple[str, bytes]]:
        """Yield key and bytes of every object for another number, one at a time.

        Raises:
            StoreError: the source is damaged.
        """
        for key, data in self.source.copied(self.record):
            yield key, self.renumbered_root(number) if key == METADATA else data

    def renumbered(self, number: int) -> CommitRecord:
        """Return the record with objects, and so digest, as they are under another number."""
        root = describe(METADATA, self.renumbered_root(number))
        objects = tuple(root if found.key == METADATA else found for found in self.record.objects)
        return replace(self.record, objects=objects, facts={**self.record.facts, "segment": number})


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """What a merged store will have."""

    generations: tuple[Generation, ...]
    parts: tuple[tuple[tuple[Source, Generation], ...], ...]  # of each generation: whose it is, and which one there
    origins: dict[int, Origin]  # by number in the merged store, ascending


def read_source(place: Place) -> Source:
    """Open a store to be merged.

    Raises:
        StoreError: missing, not a store, damaged, or with links in it; or incomplete where it was revised.
        FormatError: written by a newer release.
    """
    generations = read_generations(place)
    refuse_links(place)
    try:
        found = read_effective(place)
    except FileNotFoundError as error:
        raise StoreError(
            f"{place} lacks {error.filename}: it looks half-copied; copy the whole folder again"
        ) from error
    refuse_stray_segments(place, generations, list(found.committed))
    source = Source(place=place, generations=generations, effective=found, plain=PlainFolders(place))
    for generation in generations:
        # Counted, as a record may claim any number of segments.
        num_missing = generation.num_segments - sum(number in generation.segments for number in found.committed)
        if num_missing and _is_revised(source, generation):
            raise StoreError(
                f"{place} lacks {num_missing} of its segments, and documents were dropped from it or segments "
                "compacted; expected all, as they cannot be computed elsewhere: run its extract (or append) command to "
                "its end first"
            )
    return source


def plan_merge(sources: Sequence[Source]) -> MergePlan:
    """Put the generations of stores side by side, in the order in which they first appear.

    Raises:
        IdentityError: runs that differ in more than their documents; shows the differing fields side by side.
        StoreError: one segment of one run has different bytes in two stores, or one store has a run as it was before
            documents were dropped from it, or segments compacted, in another.
        CorpusError: documents of different generations have one key.
    """
    generations: list[Generation] = []
    parts: list[list[tuple[Source, Generation]]] = []
    origins: dict[int, Origin] = {}
    for source in sources:
        for part in source.generations:
            generation, numbers = _placed(source, part, generations, parts)
            if generation.number == len(generations):
                generations.append(generation)
                parts.append([])
            parts[generation.number].append((source, part))
            for number, own in numbers.items():
                _take(origins, number, Origin(source=source, number=own))
    plan = MergePlan(
        generations=tuple(generations),
        parts=tuple(map(tuple, parts)),
        origins=dict(sorted(origins.items())),
    )
    _refuse_repeated_keys(plan)
    return plan


def _placed(
    source: Source,
    part: Generation,
    known: Sequence[Generation],
    parts: Sequence[Sequence[tuple[Source, Generation]]],
) -> tuple[Generation, dict[int, int]]:
    """The generation that a source's becomes a part of, and its segments there with their numbers in the source."""
    own = [number for number in source.effective.visible if number in part.segments]
    record, offsets = part.record, [number - part.first_segment for number in own]
    if _is_revised(source, part):
        record, offsets = replace(record, closed=True, num_segments=len(own)), list(range(len(own)))
    found = generation_of_run(known, record.identity)
    if found is not None and (found.is_closed or record.closed):
        raise _would_come_back(source, parts[found.number][0][0], record.closed, found.is_closed)
    if found is not None:
        compare_runs(source.place, record, found.record)
    else:
        if known:
            check_comparable(source.place, record, known[0].record)
        first = known[-1].segments.stop if known else 0
        found = Generation(number=len(known), first_segment=first, record=record)
    return found, {found.first_segment + offset: number for offset, number in zip(offsets, own, strict=True)}


def _would_come_back(one: Source, other: Source, is_closed: bool, other_is_closed: bool) -> StoreError:
    """Of a run that two stores have, of which one is closed, or both: whole, and without what was dropped."""
    kept, left = (other, one) if other_is_closed else (one, other)
    where, why = str(kept.place), f"as {kept.place} has all of the run"
    if is_closed and other_is_closed:
        kept, left = (left, kept) if _beyond(left, kept) else (kept, left)
        where, why = "both", f"once {kept.place} lacks what was dropped from it, too"
    lost = ", ".join(_beyond(left, kept))
    instead = f"; but it also has {lost}, which {kept.place} lacks: give the store that this came from in its stead"
    return StoreError(
        f"{one.place} and {other.place} have one run, and documents were dropped from it, or segments compacted, in "
        f"{where}: what the other has would bring dropped documents back; leave {left.place} out, {why}"
        f"{instead if lost else ''}"
    )


def _beyond(source: Source, other: Source) -> list[str]:
    """The generations of a source whose runs another one does not have."""
    lost = [one for one in source.generations if generation_of_run(other.generations, one.identity) is None]
    return [f"generation {one.number}" for one in lost]


def _is_revised(source: Source, generation: Generation) -> bool:
    """Whether documents were dropped from a generation, or its segments compacted."""
    found = source.effective
    return any(number in generation.segments for number in found.replaced | found.tombstones.keys())


def _take(origins: dict[int, Origin], number: int, origin: Origin) -> None:
    """Note where a segment is copied from; of two stores that have it the first, where both have the same."""
    other = origins.setdefault(number, origin)
    if other is origin:
        return
    digests = {one.renumbered(number).digest for one in (other, origin)}
    if len(digests) > 1:
        raise StoreError(
            f"segment {other.number} of {other.source.place} and segment {origin.number} of {origin.source.place} have "
            "different bytes, and their runs have one identity: run `gradsae verify` on both; where nothing is found, "
            "find out why two runs of one identity differ"
        )


def _refuse_repeated_keys(plan: MergePlan) -> None:
    if len(plan.generations) == 1:
        return
    repeated = repeated_keys(
        [
            [origin.source.segment(origin.number) for number, origin in plan.origins.items() if number in one.segments]
            for one in plan.generations
        ]
    )
    if repeated:
        few = "; ".join(f"{key!r} in {' and '.join(where)}" for key, where in list(repeated.items())[:5])
        raise CorpusError(
            f"{counted(len(repeated), 'key')} of documents in more than one of the corpora: {few}; expected keys that "
            "are unique in the merged store: take them out of one with `gradsae drop`, or extract with another "
            "--id-column"
        )


def common_dictionary(sources: Sequence[Source]) -> tuple[Source, CommitRecord] | None:
    """Return the dictionary of all sources that have one, and one of them; None where none has.

    Raises:
        IdentityError: they have different ones.
    """
    found = [(source, read_record(path)) for source in sources if (path := dictionary_record(source.place)).exists()]
    for source, record in found[1:]:
        if record.digest != found[0][1].digest:
            raise IdentityError(
                f"{source.place} has another dictionary (vocabulary or decoder norms) than {found[0][0].place}; "
                "expected stores of the same model and SAEs"
            )
    return found[0] if found else None


def dropped_elsewhere(sources: Sequence[Source], plan: MergePlan) -> list[str]:
    """Return the keys of documents of the plan that were dropped from another store than theirs.

    They are of another corpus (see `plan_merge`), where a key may be that of the same document or of another one.
    """
    found: dict[str, int] = {}
    for source in sources:
        dropped = source.effective.tombstones.values()
        if dropped:
            others = (origin for origin in plan.origins.values() if origin.source is not source)
            known = KnownKeys(origin.source.segment(origin.number) for origin in others)
            found |= known.common(sorted(frozenset().union(*dropped)))
    return sorted(found)


def _batches(objects: Iterable[ObjectRecord]) -> Iterator[list[ObjectRecord]]:
    """Cut objects into runs that may be in memory together."""
    batch: list[ObjectRecord] = []
    for found in objects:
        size = found.length + sum(one.length for one in batch)
        if batch and (len(batch) == _TOGETHER or size > _BYTES_TOGETHER):
            yield batch
            batch = []
        batch.append(found)
    yield batch


def _damaged(store: Place, path: str, what: str) -> StoreError:
    return StoreError(
        f"{path} {what}; run `gradsae verify {store}`, then `gradsae repair` and its extract command again"
    )
