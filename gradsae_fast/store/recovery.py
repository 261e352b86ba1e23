"""What a writer finds when it starts: a store to go on with, what a killed writer left, or something else."""

from functools import partial
from pathlib import Path

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.ahead import concurrently
from gradsae_fast.store.places.durable import TEMPORARY, remove_temporaries, remove_tree
from gradsae_fast.store.places.lock import LOCK_FILE
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import (
    COMMITS,
    SEGMENTS,
    CommitRecord,
    missing_objects,
    prepare,
    read_commits,
    remove_uncommitted,
    remove_unnamed,
)
from gradsae_fast.store.records.effective import effective
from gradsae_fast.store.records.generations import read_generations, refuse_stray_segments
from gradsae_fast.store.records.identity import RUN_FILE
from gradsae_fast.store.records.revisions import complete_copies, read_revisions
from gradsae_fast.store.sidecars.described import described_record
from gradsae_fast.store.sidecars.dictionary import dictionary_record
from gradsae_fast.store.sidecars.exact import remove_stale


def refuse_strangers(store: Place) -> None:
    """Refuse a folder that holds something else; a start that was killed early leaves a lock and temporary files."""
    if (store / RUN_FILE).exists():
        return
    names = sorted(path.name for path in store.iterdir())
    strangers = [name for name in names if name != LOCK_FILE and not name.startswith(TEMPORARY)]
    # Another worker may have begun the store since the first look.
    if strangers and not (store / RUN_FILE).exists():
        half = "; it looks like a half-copied store" if COMMITS in strangers else ""
        raise StoreError(
            f"{store} is not empty and not a store: it has {', '.join(strangers[:5])} but no {RUN_FILE}{half}; "
            "expected a new or empty folder, or a store to resume"
        )


def recover(store: Place, *, alone: bool) -> dict[int, CommitRecord]:
    """Check that what readers see is all there, and clear what is not committed or was replaced.

    Beside other writers only what was replaced is cleared: what is not committed may be what they are writing. Returns
    by committed segment the record of what readers see of it: its own, or that of the segment in its place.
    """
    # In a bucket a folder exists with its first object: there, a store that was killed early looks just so.
    if isinstance(store, Path) and (store / SEGMENTS).exists() and not (store / COMMITS).exists():
        raise StoreError(
            f"{store} has segments but no commit records: it looks half-copied; copy the whole folder again"
        )
    prepare(store)
    if alone:
        for folder in (store, *(path for path in store.iterdir() if path.is_dir())):
            remove_temporaries(folder)
    revisions = read_revisions(store)
    found = effective(read_commits(store), revisions, store)
    # After the segments: another writer may be adding a generation and its first ones.
    refuse_stray_segments(store, read_generations(store), list(found.records))
    missing = concurrently(store, partial(missing_objects, store), found.records.values())
    for index, faults in zip(found.records, missing, strict=True):
        if faults:
            what = f"its object {faults[0][0]} {faults[0][1]}"
            raise StoreError(f"{store}: segment {index} is damaged: {what}; run `gradsae repair`, then this again")
    complete_copies(store, revisions)
    remove_stale(store, found, alone=alone)
    if alone:
        remove_uncommitted(store, found.records.values())
        for record in (dictionary_record(store), described_record(store)):
            remove_unnamed(record)
    elif found.superseded:
        for path in (store / SEGMENTS).iterdir():
            if f"{SEGMENTS}/{path.name}" in found.superseded:
                remove_tree(path)
    return found.committed_records
