"""What is damaged is taken out of a store, so that the command that made it makes it again, and that alone."""

import re
from collections.abc import Callable, Sequence
from secrets import token_hex

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.durable import make_folder, move, storage_errors
from gradsae_fast.store.places.lock import WriterLock
from gradsae_fast.store.places.place import Place, key_below, place_of
from gradsae_fast.store.records.commits import COMMITS, read_commits, record_path
from gradsae_fast.store.records.effective import Effective, effective
from gradsae_fast.store.records.generations import GENERATIONS, read_generations
from gradsae_fast.store.records.identity import RUN_FILE, read_run
from gradsae_fast.store.records.revisions import (
    REVISIONS,
    Revision,
    Withdrawal,
    complete_copies,
    publish_revision,
    read_revisions,
    restore_revisions,
)
from gradsae_fast.store.sidecars.described import FOLDER as DESCRIBED_FOLDER
from gradsae_fast.store.sidecars.described import described_record
from gradsae_fast.store.sidecars.dictionary import DICTIONARY, dictionary_record
from gradsae_fast.store.sidecars.exact import FOLDER as EXACT_FOLDER
from gradsae_fast.store.sidecars.exact import rooms
from gradsae_fast.store.sidecars.index import INDEX, index_records
from gradsae_fast.store.verify import DROPPED, Fault, verify


def repair(path: str | Place, *, tell: Callable[[str], None] | None = None) -> list[int]:
    """Drop every segment that `verify` finds damaged, and return their numbers; the next run recomputes exactly those.

    Commit records are moved to `dropped/`, those of the exact effects of a dropped segment too; nothing else that is
    sound is touched. Where a damaged segment was put in the place of others, it is withdrawn by a revision and those
    are to be computed again, without the documents that were dropped from them. A revision record that is missing or
    damaged is restored from its copy. A damaged dictionary, sidecar, description, index or segment's exact effects are
    dropped too; `tell` is told of each in a sentence, and how it is made again.

    Raises:
        StoreError: not a store, read-only, or damage to what nothing can be recomputed from: `run.json`, the record of
            a generation, or that of a revision and its copy.
        BusyError: another process writes to the store.
    """
    store = place_of(path)
    if not (store / RUN_FILE).exists():
        read_run(store)
    with storage_errors(store):
        lock = WriterLock(store)
        try:
            return _repair(store, tell or (lambda _: None))
        finally:
            lock.release()


def _repair(store: Place, tell: Callable[[str], None]) -> list[int]:
    for number in restore_revisions(store):
        tell(f"restored the record of revision {number}, or its copy, from the other one of the two")
    faults = verify(store)
    files = _damaged_files(store, faults)
    revisions = read_revisions(store)
    replaced = effective({}, revisions, store)
    in_commits, in_objects = set[int](), set[int]()
    for fault in faults:
        if fault.segment is not None and not _in_exact(fault):
            (in_commits if fault.object.startswith(f"{COMMITS}/") else in_objects).add(fault.segment)
    withdrawn = sorted(in_objects & replaced.replacements)
    lost = {number for owner in withdrawn for number in replaced.covers[owner]}
    lost |= {number for number in in_commits | in_objects if number not in replaced.replaced}
    spare = sorted(in_commits & replaced.replaced - lost)
    _take_out(store, [record_path(store, number) for number in sorted(lost | set(spare))])
    _take_out(store, files)
    # The commit records went first: what was replaced by a withdrawn segment must not be seen for a moment.
    _withdraw(store, withdrawn, revisions, replaced)
    for path in files:
        tell(f"dropped {key_below(path, store)}; the command that wrote it writes it again")
    if spare:
        tell(f"dropped the commit records of segments {_listed(spare)}, which others were put in the place of")
    for generation in read_generations(store):
        if generation.is_closed and not lost.isdisjoint(generation.segments):
            tell(
                f"generation {generation.number} was merged out of revised stores and has segments that no run "
                "computes; the same `gradsae merge` command copies them again, unless this store was revised itself"
            )
    _drop_exact(store, faults, lost, tell)
    return sorted(lost)


def _take_out(store: Place, paths: Sequence[Place]) -> None:
    for path in paths:
        if path.exists():
            make_folder(store / DROPPED)
            move(path, store / DROPPED / f"{path.stem}-{token_hex(4)}{path.suffix}")


def _withdraw(store: Place, numbers: Sequence[int], revisions: Sequence[Revision], now: Effective) -> None:
    if not numbers:
        return
    withdrawn = tuple(Withdrawal(segment=number, digest=now.records[number].digest) for number in numbers)
    revision = Revision(number=len(revisions) + 1, withdrawn=withdrawn)
    effective(read_commits(store), [*revisions, revision], store)  # refuses what no reader could read
    publish_revision(store, revision)
    complete_copies(store, [revision])


def _drop_exact(store: Place, faults: Sequence[Fault], lost: set[int], tell: Callable[[str], None]) -> None:
    """Take out damaged exact effects, and those of committed segments that are to be computed again."""
    names = {key_below(room, store): room for room in rooms(store)}
    damaged = {
        (max(filter(lambda name: fault.object.startswith(f"{name}/"), names), key=len), fault.segment)
        for fault in faults
        if _in_exact(fault)
    }
    damaged |= {(name, number) for name in names if name == EXACT_FOLDER for number in lost}
    records = [record_path(names[name], number) for name, number in damaged if number is not None]
    there = [path for path in sorted(records) if path.exists()]
    _take_out(store, there)
    if there:
        numbers = _listed(sorted({int(path.stem) for path in there}))
        tell(f"dropped the exact effects of segments {numbers}; extract with --exact-dense SHARE to measure them again")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _damaged_files(store: Place, faults: list[Fault]) -> list[Place]:
    """The run's own files to drop, each once: sidecars, and the records of dictionary, description and index."""
    records = {DICTIONARY: dictionary_record(store), DESCRIBED_FOLDER: described_record(store)}
    records |= {f"{INDEX}/{path.stem}": path for path in index_records(store)}
    files = []
    for fault in faults:
        if fault.object.partition("/")[0] == REVISIONS:
            raise StoreError(
                f"{fault}; its copy cannot restore it, and without it documents that were dropped could come back: "
                "copy the store again from a backup, or extract to a new folder from a corpus without them"
            )
        if fault.object in (RUN_FILE, COMMITS) or fault.object.partition("/")[0] == GENERATIONS:
            raise StoreError(f"{fault}; it cannot be recomputed: restore it from a copy, or extract to a new folder")
        if fault.segment is None:
            folder, _, rest = fault.object.partition("/")
            if folder == INDEX:  # it lies beside its record, in a folder named by the same generation
                folder = f"{INDEX}/{re.split('[-.]', rest)[0]}"
            files.append(records.get(folder, store / fault.object))
    return list(dict.fromkeys(files))


def _in_exact(fault: Fault) -> bool:
    return fault.object.startswith(f"{EXACT_FOLDER}/")
