"""The generations of a store: the corpus that it began with, and those that were appended to it, one after the other.

    run.json                    generation 0
    generations/000001.json     generation 1, and so on without gaps

A generation is a run of its own over another corpus: same model, SAEs, tokens and method, so that its numbers compare.
Its segments are numbered on from those of the generations before it, committed or not, so an incomplete store can grow
and any generation can be resumed at any time. Records are created exclusively and never replaced.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gradsae_fast.errors import FormatError, IdentityError, StoreError
from gradsae_fast.store.format.layout import GENERATION_FORMAT, RUN_VERSION
from gradsae_fast.store.places.durable import create_exclusive, document_bytes, make_folder, read_document
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import COMMITS, find_records
from gradsae_fast.store.records.identity import (
    RUN_FILE,
    RunRecord,
    compare_runs,
    create_or_compare,
    differences,
    read_run,
    run_from_document,
    side_by_side,
)

GENERATIONS = "generations"
_RECORD_NAME = re.compile(r"(\d{6,})\.json")
_OF_THE_CORPUS = {"identity.corpus", "identity.corpus.plan", "settings.num_segments", "settings.closed"}
_APPEND = "Only the documents differ: `gradsae append` adds them to the store, or choose another folder for a new run."


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One corpus of a store: the run that scores it, and where its segments lie among those of the store."""

    number: int
    first_segment: int  # in the store's numbering
    record: RunRecord

    @property
    def identity(self) -> dict[str, Any]:
        """What its scores depend on."""
        return self.record.identity

    @property
    def run(self) -> dict[str, Any]:
        """Facts of the first start of its run."""
        return self.record.run

    @property
    def num_segments(self) -> int:
        """Segments of its plan, committed or not."""
        return self.record.num_segments

    @property
    def segments(self) -> range:
        """Numbers of its segments in the store."""
        return range(self.first_segment, self.first_segment + self.record.num_segments)

    @property
    def is_closed(self) -> bool:
        """Whether it came out of a merge with segments dropped or compacted, and so can never be resumed."""
        return self.record.closed

    def name_of(self, facts: str) -> str:
        """Return the name of its own sidecar: `plan` of generation 0, `plan-1` of generation 1."""
        return name_of_facts(facts, self.number)


def name_of_facts(facts: str, generation: int) -> str:
    """Return the name of the sidecar of a generation: `plan` of generation 0, `plan-1` of generation 1."""
    return f"{facts}-{generation}" if generation else facts


def read_generations(store: Place, run: RunRecord | None = None) -> tuple[Generation, ...]:
    """Return all generations of a store, generation 0 first; `run` is `run.json` where it was read already.

    Raises:
        StoreError: there is no store, or a record is missing or damaged.
        FormatError: written by a newer release.
    """
    generations = [Generation(number=0, first_segment=0, record=run or read_run(store))]
    if generations[0].record.format_version < RUN_VERSION:
        return tuple(generations)
    for number in range(1, max(_numbers(store), default=0) + 1):
        generations.append(_read_generation(store, number, generations[-1].segments.stop))
    return tuple(generations)


def count_generations(store: Place) -> int:
    """Return how many generations a store has, by one look at it."""
    return 1 + max(_numbers(store), default=0)


def generation_record(store: Place, number: int) -> Place:
    """Return where the record of a generation after the first lies."""
    return store / GENERATIONS / f"{number:06d}.json"


def generation_of_run(generations: Sequence[Generation], identity: dict[str, Any]) -> Generation | None:
    """Return the generation of this very identity, or None."""
    for generation in generations:
        if not differences(generation.record, replace(generation.record, identity=identity)):
            return generation
    return None


def own_generation(store: Place, generations: Sequence[Generation], identity: dict[str, Any]) -> Generation:
    """Return the generation of a run that has made one.

    Raises:
        IdentityError: the store has none of this identity; shows the differing fields side by side.
    """
    found = generation_of_run(generations, identity)
    if found is None:
        stored = generations[0].record
        raise _another_run(store, stored, replace(stored, identity=identity))
    return found


def begin_generation(store: Place, asked: RunRecord, *, append: bool) -> tuple[tuple[Generation, ...], Generation]:
    """Find the generation of a run, or make it: a new store has it as generation 0, `append` adds it to a store.

    Returns all generations, and that of the run.

    Raises:
        StoreError: `append` to what is no store, a setting that the format does not have, or a closed generation.
        FormatError: `append` to a store of version 1, or the store was written by a newer release.
        IdentityError: the store belongs to another run; shows the differing fields side by side.
    """
    if not append and not (store / RUN_FILE).exists():
        create_or_compare(store, asked)
    generations = read_generations(store)
    found = generation_of_run(generations, asked.identity)
    if found is None and append:
        return add_generation(store, asked)
    if found is None:
        raise _another_run(store, generations[0].record, asked)
    if found.is_closed:
        raise StoreError(
            f"{store}: generation {found.number} was merged out of a store with dropped or compacted segments, so no "
            "run has its segments any more: it cannot be resumed, and is complete as it is"
        )
    compare_runs(store, found.record, asked)
    return generations, found


def add_generation(store: Place, asked: RunRecord) -> tuple[tuple[Generation, ...], Generation]:
    """Add a generation that differs from generation 0 in its corpus alone; returns all, and the new one.

    Where another writer adds it at the same time, the one that it made is returned.

    Raises:
        StoreError: there are segments of no generation, which would become those of the new one.
        FormatError: a store of version 1.
        IdentityError: it differs in more; shows the differing fields side by side.
    """
    while True:
        committed = find_records(store) if (store / COMMITS).is_dir() else {}
        generations = read_generations(store)  # after the segments, as another writer may be adding one
        refuse_stray_segments(store, generations, list(committed))
        found = generation_of_run(generations, asked.identity)
        if found is not None:
            return generations, found
        require_version_2(store, generations[0].record)
        check_comparable(store, generations[0].record, asked)
        added = Generation(number=len(generations), first_segment=generations[-1].segments.stop, record=asked)
        with suppress(FileExistsError):
            write_generation(store, added)


def write_generation(store: Place, generation: Generation) -> None:
    """Write the record of a generation after the first.

    Raises:
        FileExistsError: the store has a generation of this number.
    """
    make_folder(store / GENERATIONS)
    create_exclusive(generation_record(store, generation.number), document_bytes(_to_document(generation)))


def check_comparable(store: Place, stored: RunRecord, asked: RunRecord) -> None:
    """Refuse a run whose scores cannot stand beside those of the store.

    Raises:
        IdentityError: it differs in more than its corpus; shows the differing fields side by side.
    """
    differing = [row for row in differences(stored, asked) if row[0] not in _OF_THE_CORPUS]
    if differing:
        raise IdentityError(
            side_by_side(store, differing, "The generations of a store may differ in their documents only.")
        )


def require_version_2(store: Place, record: RunRecord) -> None:
    """Refuse to make more of a store than its version has, which earlier releases would read past.

    Raises:
        FormatError: it is of version 1; says how to migrate.
    """
    if record.format_version < RUN_VERSION:
        raise FormatError(
            f"{store} has format version {record.format_version}, which can be read, resumed, verified and repaired, "
            f"but not grown or changed; `gradsae merge {store} --out NEW` copies it into a store of version "
            f"{RUN_VERSION}: go on with that"
        )


def refuse_stray_segments(store: Place, generations: Sequence[Generation], committed: Sequence[int]) -> None:
    """Refuse a store with committed segments of no generation.

    Raises:
        StoreError: names the first of them.
    """
    stop = generations[-1].segments.stop
    stray = [index for index in committed if index >= stop]
    if stray:
        raise StoreError(
            f"{store}: segment {min(stray)} is damaged: the plan has {stop} segments: a record in {GENERATIONS}/ is "
            "missing, or the store was mixed with another one; copy the whole folder again"
        )


def _another_run(store: Place, stored: RunRecord, asked: RunRecord) -> IdentityError:
    """Say what differs, and where it is the documents alone, which verb adds them."""
    differing = differences(stored, asked)
    if all(name in _OF_THE_CORPUS for name, _, _ in differing):
        return IdentityError(side_by_side(store, differing, _APPEND))
    return IdentityError(side_by_side(store, differing))


def _numbers(store: Place) -> list[int]:
    matches = (_RECORD_NAME.fullmatch(path.name) for path in (store / GENERATIONS).glob("*.json"))
    return [int(match[1]) for match in matches if match]


def _read_generation(store: Place, number: int, first_segment: int) -> Generation:
    path = generation_record(store, number)
    try:
        document = read_document(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: the store looks half-copied; copy the whole folder again") from error
    record = run_from_document(path, document, GENERATION_FORMAT)
    if (document.get("generation"), document.get("first_segment")) != (number, first_segment):
        raise StoreError(
            f"{path} is of generation {document.get('generation')} from segment {document.get('first_segment')} on; "
            f"expected generation {number} from segment {first_segment} on: it is a record of another store; copy the "
            "whole folder again"
        )
    return Generation(number=number, first_segment=first_segment, record=record)


def _to_document(generation: Generation) -> dict[str, Any]:
    record = replace(generation.record, format_version=RUN_VERSION)
    return {
        **record.to_document(),
        "format": GENERATION_FORMAT,
        "generation": generation.number,
        "first_segment": generation.first_segment,
    }
