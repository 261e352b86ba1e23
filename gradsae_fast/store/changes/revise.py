"""Rewriting a store: new segments in the place of others, in one revision, by the holder of the writer's lock.

    segments are read, whole, and rewritten as `rewrite` says  →  staged under segments/, synced and read back
    →  one revision makes all of them visible  →  its copy is kept  →  what was replaced is deleted

Killed anywhere before the revision, it has done nothing that a reader sees, and the next start deletes what was staged;
killed after it, the next start deletes what was replaced.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from gradsae_fast.errors import BusyError, QueryError
from gradsae_fast.records import SegmentScores
from gradsae_fast.store.arrays.encoding import segment_facts, segment_objects
from gradsae_fast.store.changes.carried import carry_exact
from gradsae_fast.store.changes.leftovers import refuse_replaced, unnamed_folders
from gradsae_fast.store.changes.rewrite import check_objects, read_scores
from gradsae_fast.store.format.contracts import check_segment
from gradsae_fast.store.places.durable import remove_tree, storage_errors
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.reader import ScoreStore, open_scores
from gradsae_fast.store.records.commits import SEGMENTS, CommitRecord, read_commits, stage
from gradsae_fast.store.records.effective import Effective, effective
from gradsae_fast.store.records.generations import read_generations, require_version_2
from gradsae_fast.store.records.revisions import (
    Replacement,
    Revision,
    Tombstone,
    complete_copies,
    publish_revision,
    read_revisions,
    revision_record,
)
from gradsae_fast.store.recovery import recover
from gradsae_fast.store.sidecars.certificate import follow_revision, forget_dropped
from gradsae_fast.store.sidecars.exact import ExactDense, new_room
from gradsae_fast.store.sidecars.index import remove_unfinished

_MOST_STAGED = 1 << 30  # bytes of segments in a revision: a disk needs no second store, and a kill loses little
_LONGEST_RECORD = 1 << 24  # bytes of its record, about: a quarter of what a reader takes
_OF_AN_OBJECT = 256  # bytes of the record, about


@contextmanager
def revising(path: str | Place, *, sweep: bool = False) -> Iterator["Reviser"]:
    """Hold a store to rewrite segments of it; what was staged and not published is deleted in the end.

    Args:
        path: the store.
        sweep: delete what is not committed in a bucket too, where it may be another writer's; on a disk it always goes.

    Raises:
        FormatError: a store of version 1, or of a newer release.
        BusyError: another process writes to it.
        StoreError: missing, damaged or read-only; or, in the end, what was replaced could not be deleted.
    """
    store = place_of(path)
    generations = read_generations(store)
    require_version_2(store, generations[0].record)
    with locked(store):
        reviser = Reviser(store, sweep=sweep)
        try:
            yield reviser
        except QueryError:
            reviser.refuse_leftovers()  # of an earlier call, which may have left nothing to answer this one with
            raise
        finally:
            reviser.abandon()
        reviser.refuse_leftovers()


class Reviser:
    """Stages segments and publishes them; made by `revising`.

    Attributes:
        path: the store.
        opened: the store as readers see it now.
        effective: the same, segments without documents too.
    """

    def __init__(self, path: Place, *, sweep: bool = False) -> None:
        self.path = path
        self._sweep = sweep
        self._alone = sweep or isinstance(path, Path)
        self._staged: list[Replacement] = []
        self._dropped: list[Tombstone] = []
        self._begin()

    def _begin(self) -> None:
        """Read the store, and clear what an interrupted process left."""
        with storage_errors(self.path):
            recover(self.path, alone=self._alone)
            if self._sweep:
                remove_unfinished(self.path)
            self._commits = read_commits(self.path)
            self.generations = read_generations(self.path)
            self._revisions = read_revisions(self.path)
        self.effective: Effective = effective(self._commits, self._revisions, self.path)
        self.opened: ScoreStore = open_scores(self.path, use_index=False)
        forget_dropped(self.opened, frozenset[str]().union(*self.effective.tombstones.values()))
        self._exact: ExactDense | None = self.opened.exact_dense()
        self._room = new_room(self.path, self.effective.num_revisions + 1)
        self._segments = {segment.index: segment for segment in self.opened.segments}

    def read(self, number: int) -> SegmentScores:
        """Return the scores of an effective segment, every object of it checked against its record.

        Raises:
            StoreError: it is damaged.
        """
        check_objects(self.path, self.effective.records[number])
        return read_scores(self._segments[number])

    def put(self, numbers: Sequence[int], scores: SegmentScores, dropped: Iterable[str] = ()) -> CommitRecord:
        """Stage a segment for the place of effective ones: their documents in their order, but for those dropped.

        Raises:
            StoreError: a full or broken disk; exact effects of some of the segments, not of all.
        """
        scores = replace(scores, index=numbers[0])
        check_segment(scores)
        facts = {"segment": scores.index, **segment_facts(scores)}
        with storage_errors(self.path):
            folder = f"{SEGMENTS}/{scores.index:06d}-{token_hex(8)}"
            encoding = self.generations[0].record.encoding
            record = stage(self.path, folder, segment_objects(scores, encoding), facts)
            digests = tuple(self.effective.records[number].digest for number in numbers)
            self._staged.append(Replacement(segments=tuple(numbers), digests=digests, record=record))
            self._dropped += [Tombstone(key=key, segment=scores.index) for key in dropped]
            if self._exact is not None:
                sources = [self._segments[number] for number in numbers if number in self._segments]
                carry_exact(self.opened, self._exact, sources, (scores, record), self._room)
        return record

    @property
    def staged_bytes(self) -> int:
        """Bytes of the staged segments."""
        return sum(replacement.record.num_bytes for replacement in self._staged)

    @property
    def is_full(self) -> bool:
        """Whether what is staged is enough for one revision."""
        objects = sum(len(replacement.record.objects) for replacement in self._staged)
        keys = sum(6 * len(tombstone.key) for tombstone in self._dropped)  # as JSON escapes them at worst
        record = _OF_AN_OBJECT * (objects + len(self._dropped)) + keys
        return self.staged_bytes >= _MOST_STAGED or record >= _LONGEST_RECORD

    def publish(self) -> None:
        """Make all staged segments visible at once, and delete what they replace.

        Raises:
            BusyError: another process has revised the store meanwhile; nothing was changed.
            StoreError: the disk is full, read-only or broken.
        """
        revision = Revision(
            number=self.effective.num_revisions + 1, replaced=tuple(self._staged), dropped=tuple(self._dropped)
        )
        effective(self._commits, [*self._revisions, revision], self.path)  # refuses what no reader could read
        (staged, self._staged), room, self._dropped = (self._staged, []), self._room, []
        # From here on they may be visible. Only who knows that they are not may remove them.
        with storage_errors(self.path):
            try:
                publish_revision(self.path, revision)
            except FileExistsError as error:
                self._remove(staged, room)
                raise BusyError(
                    f"{self.path}: another process has rewritten segments meanwhile; run the same command again"
                ) from error
            except OSError:
                if not revision_record(self.path, revision.number).exists():
                    self._remove(staged, room)
                raise
            complete_copies(self.path, [revision])
        before = self.opened
        self._begin()
        owners = {number: one.segments[0] for one in staged for number in one.segments}
        follow_revision(before, self.opened, owners)

    def unfinished(self, last: int) -> list[str]:
        """Name folders that no record names and that may have documents of the segments up to `last`; in a bucket.

        They are of writers that were killed, or are at work. A folder of a segment may have the documents of later ones
        too, where compacting was killed.
        """
        left = [] if self._alone else unnamed_folders(self.path, self.effective)
        return [folder for folder in left if int(folder.rpartition("/")[2].partition("-")[0]) <= last]

    def refuse_leftovers(self) -> None:
        """Tell what was to be deleted and is still there.

        Raises:
            StoreError: names the folders.
        """
        refuse_replaced(self.path, self.effective, alone=self._alone)

    def abandon(self) -> None:
        """Delete what is staged."""
        if self._staged:
            self._remove(self._staged, self._room)
        self._staged, self._dropped = [], []

    def _remove(self, staged: Sequence[Replacement], room: Place) -> None:
        for replacement in staged:
            remove_tree(self.path / replacement.record.folder)
        remove_tree(room)
