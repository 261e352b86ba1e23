"""What commit records and revisions come to: the segments that readers see, and the documents that are gone.

A *committed* segment is one of a plan and has a commit record; an *effective* one is what readers see: a committed one
that nothing was put in the place of, or a replacement, which stands for one or more committed ones.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gradsae_fast.errors import StoreError
from gradsae_fast.store.format.claims import check_claims
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import CommitRecord, read_commits, read_record, record_path
from gradsae_fast.store.records.revisions import (
    Replacement,
    Revision,
    Tombstone,
    Withdrawal,
    find_revisions,
    read_revisions,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The segments of a store after all its revisions, by number in ascending order."""

    records: Mapping[int, CommitRecord]  # of all effective segments
    covers: Mapping[int, tuple[int, ...]]  # the committed segments that each stands for, ascending
    tombstones: Mapping[int, frozenset[str]]  # of committed segments: keys of dropped documents
    replacements: frozenset[int]  # effective segments that were put in the place of others
    superseded: frozenset[str]  # folders below the store that held a segment before it was replaced
    num_revisions: int

    @property
    def visible(self) -> dict[int, CommitRecord]:
        """The segments that readers see: all but those that have lost all their documents."""
        return {number: record for number, record in self.records.items() if not self.is_emptied(number)}

    def is_emptied(self, number: int) -> bool:
        """Whether an effective segment has no documents any more."""
        revised = number in self.replacements or number in self.tombstones
        return revised and not self.records[number].facts["counts"]["documents"]

    @property
    def committed(self) -> frozenset[int]:
        """Committed segments that are there, each as it is or in its replacement."""
        return frozenset(number for numbers in self.covers.values() for number in numbers)

    @property
    def committed_records(self) -> dict[int, CommitRecord]:
        """Of each committed segment, the record of what readers see of it: its own, or that of its replacement."""
        return {number: self.records[owner] for owner, numbers in self.covers.items() for number in numbers}

    @property
    def replaced(self) -> frozenset[int]:
        """Committed segments that are there in a replacement only."""
        return frozenset(number for owner in self.replacements for number in self.covers[owner])


def read_effective(store: Place) -> Effective:
    """Read all commit records and revisions of a store.

    Raises:
        StoreError: one is missing or damaged, or they contradict each other.
        FormatError: written by a newer release.
    """
    commits = read_commits(store)
    return effective(commits, read_revisions(store), store)


class Tombstones:
    """The documents that were dropped from a store, read again whenever it has a further revision."""

    def __init__(self, store: Place) -> None:
        self._store = store
        self._num_revisions = 0
        self._keys: Mapping[int, frozenset[str]] = {}

    def of(self, number: int) -> frozenset[str]:
        """Return the keys of the documents that were dropped from a committed segment.

        Raises:
            StoreError: a revision is missing or damaged.
        """
        if len(find_revisions(self._store)) != self._num_revisions:
            found = effective({}, read_revisions(self._store), self._store)
            self._num_revisions, self._keys = found.num_revisions, found.tombstones
        return self._keys.get(number, frozenset())


class SegmentRecords:
    """The records of a store's segments, each read when it is asked for: commit records, and those inside revisions."""

    def __init__(self, store: Place) -> None:
        self._store = store

    def find(self, index: int, folder: str) -> CommitRecord | None:
        """Return the record of the segment with this number whose objects are in `folder`, or None.

        Raises:
            StoreError: it is damaged.
        """
        try:
            record = read_record(record_path(self._store, index))
        except FileNotFoundError:
            record = None
        return record if record is not None and record.folder == folder else self._replacements.get(folder)

    def is_effective(self, index: int, folder: str) -> bool:
        """Whether that segment is still one that readers see.

        Raises:
            StoreError: a record is damaged.
        """
        record = read_effective(self._store).records.get(index)
        return record is not None and record.folder == folder

    @cached_property
    def _replacements(self) -> dict[str, CommitRecord]:
        revisions = read_revisions(self._store)
        return {one.record.folder: one.record for revision in revisions for one in revision.replaced}


def effective(commits: Mapping[int, CommitRecord], revisions: Sequence[Revision], store: object) -> Effective:
    """Return what the commit records and the revisions, in their order, come to; `store` is for errors.

    A commit record that was replaced may be missing. One that is there must be the one that was replaced; and one that
    is written anew, where its replacement was withdrawn, must not have what was dropped from it.

    Raises:
        StoreError: records that contradict each other, or do not say what a segment's record says.
    """
    for number, record in commits.items():
        check_claims(record.facts, number, f"{store}, the commit record of segment {number}")
    history = _History(store)
    for revision in revisions:
        history.take(revision)
    return history.applied_to(commits)


@dataclass(slots=True)
class _History:
    """What revisions come to, without the commit records."""

    store: object
    num_revisions: int = 0
    replacements: dict[int, CommitRecord] = field(default_factory=dict)
    covers: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of replacements
    replaced: dict[int, str] = field(default_factory=dict)  # committed segment -> its digest
    dropped_from: dict[int, set[str]] = field(default_factory=dict)  # committed segment -> digests with tombstones
    tombstones: dict[int, set[str]] = field(default_factory=dict)
    superseded: set[str] = field(default_factory=set)

    def take(self, revision: Revision) -> None:
        self.num_revisions += 1
        if revision.number != self.num_revisions:
            raise self._contradiction(f"revision {revision.number} comes where {self.num_revisions} is expected")
        for withdrawn in revision.withdrawn:
            self._withdraw(withdrawn)
        stood_for = dict(self.covers)
        added = {one.segments[0]: (one.record, self._taken(one, stood_for)) for one in revision.replaced}
        taken = {number for one in revision.replaced for number in one.segments}
        for number, (record, covered) in added.items():
            self.replacements[number], self.covers[number] = record, covered
        for tombstone in revision.dropped:
            self._bury(tombstone, stood_for, taken)

    def _withdraw(self, withdrawn: Withdrawal) -> None:
        record = self.replacements.pop(withdrawn.segment, None)
        if record is None or record.digest != withdrawn.digest:
            raise self._contradiction(
                f"revision {self.num_revisions} withdraws a segment {withdrawn.segment} that is not there"
            )
        self.superseded.add(record.folder)
        for number in self.covers.pop(withdrawn.segment):
            del self.replaced[number]

    def _taken(self, replacement: Replacement, stood_for: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
        """Take out what is replaced, and return the committed segments that it stood for; they are noted there too."""
        covered: list[int] = []
        for number, digest in zip(replacement.segments, replacement.digests, strict=True):
            record = self.replacements.pop(number, None)
            if number in self.replaced and (record is None or record.digest != digest):
                raise self._contradiction(
                    f"revision {self.num_revisions} replaces a segment {number} of digest {digest[:12]}…, which "
                    "readers did not see before it"
                )
            if record is None:
                self.replaced[number] = digest
                stood_for[number] = (number,)
            else:
                self.superseded.add(record.folder)
            covered += self.covers.pop(number, (number,))
        return tuple(covered)

    def _bury(self, tombstone: Tombstone, stood_for: Mapping[int, tuple[int, ...]], taken: Container[int]) -> None:
        if tombstone.segment not in taken:
            raise self._contradiction(
                f"revision {self.num_revisions} drops document {tombstone.key!r} of segment {tombstone.segment}, which "
                "it does not replace"
            )
        numbers = stood_for[tombstone.segment]
        for number in numbers:
            self.tombstones.setdefault(number, set()).add(tombstone.key)
        if len(numbers) == 1:  # of several, nobody knows which one had the document
            self.dropped_from.setdefault(numbers[0], set()).add(self.replaced[numbers[0]])

    def applied_to(self, commits: Mapping[int, CommitRecord]) -> Effective:
        records, covers = dict(self.replacements), dict(self.covers)
        for number, commit in commits.items():
            self._check(number, commit)
            if number not in self.replaced:
                records[number], covers[number] = commit, (number,)
            else:
                self.superseded.add(commit.folder)
        order = sorted(records)
        return Effective(
            records={number: records[number] for number in order},
            covers={number: covers[number] for number in order},
            tombstones={number: frozenset(keys) for number, keys in self.tombstones.items()},
            replacements=frozenset(self.replacements),
            superseded=frozenset(self.superseded),
            num_revisions=self.num_revisions,
        )

    def _check(self, number: int, commit: CommitRecord) -> None:
        expected = self.replaced.get(number)
        if expected is not None and commit.digest != expected:
            raise self._contradiction(
                f"the commit record of segment {number} has digest {commit.digest[:12]}…, the revision that replaced "
                f"it says {expected[:12]}…"
            )
        if expected is None and commit.digest in self.dropped_from.get(number, ()):
            raise self._contradiction(
                f"the commit record of segment {number} is that of before {len(self.tombstones[number])} of its "
                "documents were dropped, which must not come back"
            )

    def _contradiction(self, what: str) -> StoreError:
        return StoreError(
            f"{self.store}: {what}; its commit records and revisions are not of one store: copy the whole folder again"
        )
