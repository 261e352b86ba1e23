"""Several stores made into one: their segments copied byte for byte, only the number in each changed.

Sources are read and never written to. What is copied is published as a writer publishes it, a segment at a time, so a
merge that was killed is resumed by the same call, and the merged store is one like any other: it can be resumed,
appended to, revised and merged again. Every byte is compared with its commit record on the way.

A store of an older format version becomes one of the present version by merging it alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import ConfigError, IdentityError, StoreError
from gradsae_fast.store.changes.sources import (
    MergePlan,
    Origin,
    Source,
    common_dictionary,
    dropped_elsewhere,
    plan_merge,
    read_source,
)
from gradsae_fast.store.format.layout import RUN_VERSION
from gradsae_fast.store.places.durable import (
    make_folder,
    probe_exclusive,
    remove_temporaries,
    remove_tree,
    storage_errors,
)
from gradsae_fast.store.places.lock import WriterLock
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records.commits import (
    COMMITS,
    CommitRecord,
    prepare,
    publish,
    publish_segment,
    read_commits,
    read_record,
    remove_uncommitted,
)
from gradsae_fast.store.records.facts import keep_facts, read_facts
from gradsae_fast.store.records.generations import Generation, read_generations, require_version_2, write_generation
from gradsae_fast.store.records.identity import create_or_compare, differences, side_by_side
from gradsae_fast.store.records.revisions import find_revisions
from gradsae_fast.store.recovery import recover, refuse_strangers
from gradsae_fast.store.sidecars.certificate import CERTIFICATE
from gradsae_fast.store.sidecars.described import FOLDER as DESCRIBED
from gradsae_fast.store.sidecars.described import described_record
from gradsae_fast.store.sidecars.dictionary import DICTIONARY, dictionary_record
from gradsae_fast.store.sidecars.exact import FOLDER as EXACT
from gradsae_fast.store.sidecars.exact import read_records

_CHANGED = "The sources have changed since this merge began, or this is another store: choose another folder."


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge did."""

    path: Place
    num_generations: int
    num_segments: int  # copied by this call
    num_skipped: int  # were there already
    num_missing: int  # that the plans of open generations have and no source had
    num_bytes: int  # copied by this call


def merge_segments(
    sources: Sequence[str | Place],
    out: str | Place,
    *,
    tell: Callable[[str], None] | None = None,
    on_segment: Callable[[int, int], object] | None = None,
) -> MergeReport:
    """Copy the segments of stores into one store, new or begun by the same call; no index is made.

    Args:
        sources: the stores; where several have a segment, it is copied from the first.
        out: the merged store, which is none of them.
        tell: is told what was not carried over, in sentences.
        on_segment: is told after each segment how many are there, and of how many.

    Raises:
        ConfigError: no source, or `out` is one, or lies in one.
        IdentityError: runs that differ in more than their documents, other dictionaries, or `out` is another store.
        CorpusError: documents of different runs have one key.
        StoreError: a source is damaged, incomplete where it was revised, or has a run as it was before documents were
            dropped from it in another source; the disk is full or read-only.
        BusyError: another process writes to `out`.
    """
    places, target = [place_of(source) for source in sources], place_of(out)
    _check_places(places, target)
    opened = [read_source(place) for place in places]
    plan = plan_merge(opened)
    dictionary = common_dictionary(opened)
    with storage_errors(target):
        make_folder(target)
        refuse_strangers(target)
        lock = WriterLock(target)
        try:
            probe_exclusive(target)
            merge = _Merge(opened, plan, target, lock.alone, tell or (lambda _: None))
            merge.begin(dictionary)
            merge.tell_of_dropped()
            return merge.copy_segments(on_segment or (lambda done, of: None))
        finally:
            lock.release()


def _check_places(sources: Sequence[Place], target: Place) -> None:
    if not sources:
        raise ConfigError("no store to merge; expected one or more")
    out = _resolved(target)
    for source in sources:
        place = _resolved(source)
        if out == place:
            raise ConfigError(f"{target} is one of the stores to merge; they stay as they are: choose another folder")
        if out.startswith(f"{place}/") or place.startswith(f"{out}/"):
            raise ConfigError(f"one of {target} and {source} lies inside the other; choose a folder beside the stores")


def _resolved(place: Place) -> str:
    return str(place.resolve() if isinstance(place, Path) else place)


class _Merge:
    """A merge under way, for the holder of the writer's lock."""

    def __init__(
        self, sources: Sequence[Source], plan: MergePlan, target: Place, alone: bool, tell: Callable[[str], None]
    ) -> None:
        self.sources = sources
        self.plan = plan
        self.target = target
        self.alone = alone
        self.tell = tell

    def begin(self, dictionary: tuple[Source, CommitRecord] | None) -> None:
        """Write what the store has once: its generations, sidecars, dictionary and descriptions."""
        self._write_generations()
        if find_revisions(self.target):
            raise StoreError(
                f"{self.target} was merged, and then documents were dropped or segments compacted: a merge cannot go "
                "on with it; choose another folder, or leave it as it is"
            )
        self.commits = recover(self.target, alone=self.alone)
        if dictionary is not None:
            self._copy_group(*dictionary, DICTIONARY, dictionary_record(self.target))
        for source in self.sources:
            if (path := described_record(source.place)).exists():
                self._copy_group(source, read_record(path), DESCRIBED, described_record(self.target))
        self._keep_plans()
        self._keep_gates()
        self._keep_certificate()

    def tell_of_dropped(self) -> None:
        """Say which documents of other corpora have keys that were dropped from a source."""
        keys = dropped_elsewhere(self.sources, self.plan)
        if keys:
            self.tell(
                f"{len(keys):,} documents have keys that were dropped from another of the stores "
                f"({', '.join(map(repr, keys[:5]))}) and are copied, since they are of another corpus: where they must "
                f"go too, run `gradsae drop {self.target}` with their keys"
            )

    def copy_segments(self, on_segment: Callable[[int, int], object]) -> MergeReport:
        """Copy what is not there yet, and the exact effects of what is."""
        skipped, copied = 0, 0
        for done, (number, origin) in enumerate(self.plan.origins.items(), 1):
            if number in self.commits:
                self._compare(number, origin)
                skipped += 1
            else:
                facts = _unnumbered(origin.record)
                self.commits[number] = publish_segment(self.target, number, origin.objects(number), facts)
                copied += self.commits[number].num_bytes
            on_segment(done, len(self.plan.origins))
        copied += self._copy_exact()
        planned = sum(generation.num_segments for generation in self.plan.generations)
        return MergeReport(
            path=self.target,
            num_generations=len(self.plan.generations),
            num_segments=len(self.plan.origins) - skipped,
            num_skipped=skipped,
            num_missing=planned - len(self.plan.origins),
            num_bytes=copied,
        )

    def _write_generations(self) -> None:
        wanted = self.plan.generations
        first = replace(wanted[0].record, format_version=RUN_VERSION)
        stored = create_or_compare(self.target, first)
        require_version_2(self.target, stored)
        for generation in wanted[1:]:
            with suppress(FileExistsError):
                write_generation(self.target, generation)
        for found, generation in zip(read_generations(self.target), wanted, strict=False):
            differing = differences(found.record, generation.record)
            if differing:
                raise IdentityError(side_by_side(self.target, differing, _CHANGED))

    def _copy_group(self, source: Source, record: CommitRecord, room: str, path: Place) -> None:
        """Copy a group that a store has once, unless it is there."""
        if path.exists():
            return
        make_folder(self.target / room)
        if self.alone:
            remove_temporaries(self.target / room)
            for leftover in (self.target / room).iterdir():
                remove_tree(leftover)
        publish(self.target, f"{room}/{token_hex(8)}", path, source.copied(record), record.facts)

    def _keep_plans(self) -> None:
        for generation, parts in zip(self.plan.generations, self.plan.parts, strict=True):
            for found in _sidecars(parts, "plan")[:1]:
                keep_facts(self.target, generation.name_of("plan"), found)

    def _keep_gates(self) -> None:
        """Keep the gate of each generation; one that found what that of the store found is not kept twice."""
        of_store: dict[str, Any] | None = None
        for generation, parts in zip(self.plan.generations, self.plan.parts, strict=True):
            gates = _sidecars(parts, "gate")
            if not gates or gates[0] == of_store:
                continue
            of_store = gates[0] if of_store is None else of_store
            keep_facts(self.target, generation.name_of("gate"), gates[0])
            if any(gate.get("median_norms") != of_store.get("median_norms") for gate in gates):
                self.tell(
                    f"generation {generation.number} has median norms of its own, measured on its own documents: "
                    "attention sinks were masked above a somewhat other norm than in generation 0. Scores compare all "
                    "the same; only a token between the two limits counts in one and not in the other. The norms: "
                    f'store.facts({generation.name_of("gate")!r})["median_norms"]'
                )

    def _keep_certificate(self) -> None:
        """Keep a certificate whose segments have their numbers, and so their bytes, in the merged store."""
        for source in self.sources:
            found = read_facts(source.place, CERTIFICATE)
            if found is None:
                continue
            here = {
                str(number): origin.record.digest
                for number, origin in self.plan.origins.items()
                if origin.source is source and origin.number == number
            }
            if isinstance(found.get("segments"), dict) and found["segments"].items() <= here.items():
                keep_facts(self.target, CERTIFICATE, found)
                return
            self.tell(
                f"the certificate of {source.place} is of segments with other numbers: run `gradsae certify` again"
            )

    def _compare(self, number: int, origin: Origin) -> None:
        if origin.renumbered(number).digest != self.commits[number].digest:
            raise StoreError(
                f"{self.target} has a segment {number} with other bytes than segment {origin.number} of "
                f"{origin.source.place}: it was written by something else; choose another folder"
            )

    def _copy_exact(self) -> int:
        """Copy the exact effects that were measured for the same dense latents; returns bytes."""
        folder, copied, kept, others = self.target / EXACT, 0, None, 0
        there = self._exact_there(folder)
        for number, origin, room, record in self._exact_found():
            kept = kept or _measured(record)
            if _measured(record) != kept:
                others += 1
            elif number not in there:
                if not there and not copied:
                    prepare(folder)
                facts = {**_unnumbered(record), "of": self.commits[number].digest}
                copied += publish_segment(folder, number, origin.source.copied(record, room), facts).num_bytes
        if others:
            self.tell(
                f"the exact effects of {others} segments are of other dense latents than those of the first, and "
                "were left out; extract with --exact-dense measures them anew"
            )
        return copied

    def _exact_there(self, folder: Place) -> dict[int, CommitRecord]:
        """The exact effects that an earlier call copied; what it left half-written is deleted."""
        if not (folder / COMMITS).is_dir():
            return {}
        prepare(folder)
        there = read_commits(folder)
        if self.alone:
            remove_temporaries(folder / COMMITS)
            remove_uncommitted(folder, there.values())
        return there

    def _exact_found(self) -> Iterator[tuple[int, Origin, Place, CommitRecord]]:
        """The exact effects of the sources, by number in the merged store."""
        found = {
            id(source): read_records(source.place, [source.segment(number) for number in source.effective.visible])
            for source in self.sources
        }
        for number, origin in self.plan.origins.items():
            of_source = found[id(origin.source)]
            if origin.number in of_source:
                yield number, origin, *of_source[origin.number]


def _sidecars(parts: Sequence[tuple[Source, Generation]], name: str) -> list[dict[str, Any]]:
    return [facts for source, part in parts if (facts := source.facts(part, name)) is not None]


def _unnumbered(record: CommitRecord) -> dict[str, Any]:
    return {name: value for name, value in record.facts.items() if name != "segment"}


def _measured(record: CommitRecord) -> tuple[Any, ...]:
    """What a pass measured: which latents are dense, and at which share; effects of two passes do not mix."""
    latents = sorted((found.key, found.sha256) for found in record.objects if "/latents/" in found.key)
    return record.facts["share"], tuple(record.facts["sites"]), tuple(record.facts["objectives"]), tuple(latents)
