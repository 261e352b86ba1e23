"""Revisions: records that put new segments in the place of committed ones, each all at once.

    revisions/000001.json     revision 1, and so on without gaps
    copies/000001.json        the same bytes once more

A revision is published as a segment is: all objects of its new segments are written, synced and read back, then its
record is created exclusively and makes them visible together. Commit records stay as they are; `effective` says what
commit records and revisions come to. Only then, and after the copy of the record, is deleted what was replaced.

Without its last revision a store would look as before it, dropped documents and all. So a record that is missing where
its copy is there, or where a later one is, makes the store unreadable until `repair` has put the copy in its place.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.claims import check_claims
from gradsae_fast.store.format.fields import Fields
from gradsae_fast.store.format.layout import FORMAT_VERSION
from gradsae_fast.store.places.durable import create_exclusive, document_bytes, make_folder, read_document, replace_file
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import SEGMENTS, CommitRecord, check_version, record_from, writer_facts

REVISIONS = "revisions"
COPIES = "copies"
REVISION_FORMAT = "gradsae.revision"
_RECORD_NAME = re.compile(r"(\d{6,})\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A new segment, numbered by the first of those in whose place it is put."""

    segments: tuple[int, ...]  # as readers saw them before this revision, ascending
    digests: tuple[str, ...]  # of these segments
    record: CommitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A document that is gone for good: its key, and the segment in which readers saw it before this revision."""

    key: str
    segment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """A replacement that is taken out because it is damaged: what it stood for is to be computed again."""

    segment: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What one revision record says."""

    number: int
    replaced: tuple[Replacement, ...] = ()
    dropped: tuple[Tombstone, ...] = ()
    withdrawn: tuple[Withdrawal, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "format": REVISION_FORMAT,
            "format_version": FORMAT_VERSION,
            "revision": self.number,
            "replaced": [
                {"segments": list(one.segments), "digests": list(one.digests), "segment": _unsigned(one.record)}
                for one in self.replaced
            ],
            "dropped": [{"key": one.key, "segment": one.segment} for one in self.dropped],
            "withdrawn": [{"segment": one.segment, "digest": one.digest} for one in self.withdrawn],
            "writer": writer_facts(),
        }


def _unsigned(record: CommitRecord) -> dict[str, Any]:
    """A record without who wrote it, which the revision says of all its segments."""
    return {**record.to_document(), "writer": {"folder": record.folder}}


def revision_record(store: Place, number: int) -> Place:
    """Return where the record of a revision lies."""
    return store / REVISIONS / f"{number:06d}.json"


def revision_copy(store: Place, number: int) -> Place:
    """Return where the copy of a revision's record lies."""
    return store / COPIES / f"{number:06d}.json"


def find_revisions(store: Place) -> list[Place]:
    """List the revision records of a store in their order, without reading them.

    Raises:
        StoreError: one is missing; says whether it can be restored.
    """
    copies = listed_revisions(store, COPIES)  # first: a record that appears meanwhile must not look lost
    records = listed_revisions(store, REVISIONS)
    missing = next((n for n in range(1, max(copies | records, default=0) + 1) if n not in records), None)
    if missing is not None:
        record = revision_record(store, missing)
        remedy = "run `gradsae repair`, which restores it from its copy" if missing in copies else _lost(store)
        raise StoreError(
            f"{record} is missing: without it the store would show segments that were replaced, and documents that "
            f"were dropped; {remedy}"
        )
    return [revision_record(store, number) for number in sorted(records)]


def _lost(store: Place) -> str:
    return (
        f"its copy in {store / COPIES} is missing too, and nothing else has what it said: copy the store again from a "
        "backup, or extract to a new folder from a corpus without the dropped documents"
    )


def listed_revisions(store: Place, folder: str) -> set[int]:
    """Return the numbers of the revisions that have a record in `revisions` or a copy in `copies`."""
    if not (store / folder).is_dir():
        return set()
    return {int(found[1]) for path in (store / folder).iterdir() if (found := _RECORD_NAME.fullmatch(path.name))}


def read_revisions(store: Place) -> list[Revision]:
    """Read all revisions of a store in their order.

    Raises:
        StoreError: one is missing or damaged.
        FormatError: written by a newer release.
    """
    return [read_revision(path) for path in find_revisions(store)]


def read_revision(path: Place) -> Revision:
    """Read the record of a revision.

    Raises:
        StoreError: damaged.
        FormatError: written by a newer release.
    """
    document = read_document(path)
    if document.get("format") != REVISION_FORMAT:
        raise StoreError(f"{path} has format {document.get('format')!r}; expected {REVISION_FORMAT!r}: copy it again")
    check_version(path, document)
    fields = Fields(document, path)
    number = fields.count("revision")
    if path.stem != f"{number:06d}":
        raise StoreError(f"{path} is the record of revision {number}: it was renamed; copy the store again")
    return Revision(
        number=number,
        replaced=tuple(_replacement(one, path) for one in fields.each("replaced")),
        dropped=tuple(Tombstone(key=one.text("key"), segment=one.count("segment")) for one in fields.each("dropped")),
        withdrawn=tuple(
            Withdrawal(segment=one.count("segment"), digest=one.text("digest")) for one in fields.each("withdrawn")
        ),
    )


def _replacement(fields: Fields, path: Place) -> Replacement:
    segments, digests = fields.counts("segments"), fields.texts("digests")
    record = record_from(fields.mapping("segment"), path, SEGMENTS)
    check_claims(record.facts, segments[0] if segments else -1, path)
    ascend = all(a < b for a, b in pairwise(segments))
    if not segments or not ascend or len(digests) != len(segments) or record.facts.get("segment") != segments[0]:
        raise StoreError(
            f"{path} is damaged or was not written by gradsae-fast: segment {record.facts.get('segment')} in place of "
            f"{segments} with {len(digests)} digests; expected ascending numbers, the first its own: copy it again"
        )
    return Replacement(segments=tuple(segments), digests=tuple(digests), record=record)


def publish_revision(store: Place, revision: Revision) -> None:
    """Make a revision visible whose segments are written, synced and read back; `complete_copies` comes next.

    Raises:
        FileExistsError: there is a revision of this number.
        OSError: the disk is full, read-only or broken.
    """
    make_folder(store / REVISIONS)
    create_exclusive(revision_record(store, revision.number), document_bytes(revision.to_document()))


def complete_copies(store: Place, revisions: Sequence[Revision]) -> None:
    """Write the copies of these revisions that are not there yet; for a process that may write to the store."""
    for number in {revision.number for revision in revisions} - listed_revisions(store, COPIES):
        make_folder(store / COPIES)
        replace_file(revision_copy(store, number), revision_record(store, number).read_bytes())


def restore_revisions(store: Place) -> list[int]:
    """Put sound copies in the place of records that are missing or damaged, and return their numbers; for `repair`.

    A damaged copy of a sound record is written anew. What has no sound bytes left stays as it is.
    """
    restored = []
    records, copies = listed_revisions(store, REVISIONS), listed_revisions(store, COPIES)
    for number in sorted(records | copies):
        record, copy = revision_record(store, number), revision_copy(store, number)
        if _is_sound(record):
            if not _is_sound(copy):
                make_folder(store / COPIES)
                replace_file(copy, record.read_bytes())
                restored.append(number)
        elif _is_sound(copy):
            make_folder(store / REVISIONS)
            replace_file(record, copy.read_bytes())
            restored.append(number)
    return restored


def _is_sound(path: Place) -> bool:
    try:
        read_revision(path)
    except (StoreError, FileNotFoundError):
        return False
    return True
