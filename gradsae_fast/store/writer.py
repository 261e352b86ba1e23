"""The writing end of a store: create or resume it, write each segment once, crash at will."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from gradsae_fast.errors import CorpusError, StoreError
from gradsae_fast.records import SegmentScores
from gradsae_fast.store.arrays.encoding import Encoding, segment_facts, segment_objects
from gradsae_fast.store.changes.rewrite import leave_out
from gradsae_fast.store.format.contracts import check_segment
from gradsae_fast.store.format.layout import Array
from gradsae_fast.store.keys import OtherKeys
from gradsae_fast.store.places.durable import make_folder, probe_exclusive, storage_errors, sync
from gradsae_fast.store.places.lock import BEGINNING_SECONDS, WriterLock
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records.commits import (
    COMMITS,
    CommitRecord,
    find_records,
    new_attempt,
    publish,
    read_record,
    record_path,
    settle,
)
from gradsae_fast.store.records.effective import Tombstones
from gradsae_fast.store.records.facts import keep_facts, read_facts, write_facts
from gradsae_fast.store.records.generations import Generation, begin_generation
from gradsae_fast.store.records.identity import RunRecord, read_run
from gradsae_fast.store.records.objects import describe, digest_of
from gradsae_fast.store.recovery import recover, refuse_strangers
from gradsae_fast.store.sidecars.dictionary import publish_dictionary

_SHARED_FACTS = ("sites", "objectives", "values")


class ScoreWriter:
    """Writes segments to a store; made by `create_or_resume`, one at a time per store unless they share it.

    `write` may be called from another thread than the one that made the writer, by one thread at a time.

    Attributes:
        path: of the store.
        generation: the one that is written; segments are numbered as in its plan.
        shared: whether others may be writing too.
    """

    def __init__(
        self,
        path: Place,
        lock: WriterLock,
        generation: Generation,
        commits: dict[int, CommitRecord],
        *,
        shared: bool = False,
    ) -> None:
        self.path = path
        self.generation = generation
        self.shared = shared
        self._is_closed = False
        self._others = OtherKeys(path, generation.segments)
        self._writing = threading.Lock()
        self._lock = lock
        self._record = generation.record
        self._commits = commits
        self._tombstones = Tombstones(path)

    @classmethod
    def create_or_resume(
        cls,
        path: str | Place,
        *,
        run: dict[str, Any],
        identity: dict[str, Any],
        num_segments: int,
        precision_bits: int = 10,
        profile: str = "compact",
        aggregates_include_special: bool = False,
        append: bool = False,
        shared: bool = False,
        wait: float = BEGINNING_SECONDS,
    ) -> Self:
        """Open a store for writing, new or interrupted, and delete what a killed writer left uncommitted.

        Segments are numbered as in the run's plan, from 0, also where the run is a later generation of the store.

        Args:
            path: the store's folder, or `s3://bucket/prefix`; absent, empty, or a store of the same run.
            run: facts kept with the store and not compared on resume. Those of the first start are kept.
            identity: JSON values, flat or nested, that a resumed run must share.
            num_segments: segments of the plan.
            precision_bits: bits of significand kept: 3, 7, 10, or 23 for exact values.
            profile: `compact` or `portable`, see `codecs`.
            aggregates_include_special: whether stored sums count masked tokens too.
            append: the store is there already, and this run, whose identity differs in the corpus alone, becomes a
                further generation of it, or is resumed as the one that it is.
            shared: one of many writers of the same run. While others are there, nothing is deleted; a segment that
                another one has committed meanwhile, with equal bytes, counts as written.
            wait: seconds that a shared writer waits for one that holds the store alone, as while it is begun.

        Raises:
            IdentityError: the store belongs to another run.
            BusyError: another process writes to it.
            FormatError: it was written by a newer release, or by one whose stores cannot be appended to.
            StoreError: not a store, damaged, read-only, on a full disk or on an unfit file system.
        """
        store = place_of(path)
        encoding = Encoding(
            precision_bits=precision_bits, profile=profile, aggregates_include_special=aggregates_include_special
        )
        asked = RunRecord(identity=identity, run=run, num_segments=num_segments, encoding=encoding)
        with storage_errors(store):
            if append:
                read_run(store)  # before a folder is made of what may be misspelt
            make_folder(store)
            refuse_strangers(store)
            lock = WriterLock(store, shared=shared, wait=wait if shared else 0.0)
            try:
                probe_exclusive(store)
                _, generation = begin_generation(store, asked, append=append)
                commits = recover(store, alone=lock.alone)
                if shared:
                    lock.share()
            except BaseException:
                lock.release()
                raise
        return cls(store, lock, generation, commits, shared=shared)

    @property
    def committed(self) -> frozenset[int]:
        """Segments of the plan that are written; the others are still to do."""
        mine = self.generation.segments
        return frozenset(index - mine.start for index in self._commits if index in mine)

    def refresh(self) -> frozenset[int]:
        """Take note of what other writers have committed since; returns `committed`.

        Raises:
            StoreError: a commit record is damaged.
        """
        with self._writing, storage_errors(self.path):
            found = find_records(self.path)
            sync(self.path / COMMITS)  # who made them may have been killed before that
            for index, path in found.items():
                if index not in self._commits:
                    self._commits[index] = read_record(path)
        return self.committed

    def is_committed(self, segment: int) -> bool:
        """Whether a segment of the plan is written by now, by whichever writer; one look at the store."""
        index = self.generation.first_segment + segment
        if index in self._commits:
            return True
        is_there = record_path(self.path, index).exists()
        if is_there:
            with storage_errors(self.path):
                sync(self.path / COMMITS)  # who made it may have been killed before that
        return is_there

    def write(self, segment: SegmentScores) -> CommitRecord:
        """Write one segment: wholly and durably, or not at all; without the documents that were dropped from it before.

        Raises:
            StoreError: a segment that is written already, outside the plan, or inconsistent; a full or broken disk;
                the writer was closed.
            CorpusError: a document has the key of one of another generation.
        """
        with self._writing:
            return self._write(segment)

    def _write(self, segment: SegmentScores) -> CommitRecord:
        self._check_open()
        if not 0 <= segment.index < self._record.num_segments:
            raise StoreError(f"segment {segment.index} is outside the plan of {self._record.num_segments} segments")
        index = self.generation.first_segment + segment.index
        if index in self._commits and not self.shared:
            raise StoreError(f"segment {segment.index} is committed already; `committed` lists what to skip")
        check_segment(segment)
        keys = segment.documents.key
        with storage_errors(self.path):
            self._others.refuse(keys)
        segment = leave_out(replace(segment, index=index), self._tombstones.of(index))
        facts = segment_facts(segment)
        self._check_shared(index, facts)
        commit = self._settle(segment) if index in self._commits else self._publish(segment, facts)
        self._commits[index] = commit
        self._check_raced(index, keys)
        return commit

    def _publish(self, segment: SegmentScores, facts: dict[str, Any]) -> CommitRecord:
        """Commit, or find that another writer did so while this one was writing, or paused.

        Who commits a segment may delete the half-written objects of others, whose disk then seems to fail them.
        """
        path, folder = record_path(self.path, segment.index), new_attempt(segment.index)
        try:
            with storage_errors(self.path):
                objects = segment_objects(segment, self._record.encoding)
                return publish(self.path, folder, path, objects, {"segment": segment.index, **facts})
        except StoreError:
            # A record of this very attempt stays an error: it may not be durable yet.
            if not path.exists() or read_record(path).folder == folder:
                raise
            return self._settle(segment)

    def _settle(self, segment: SegmentScores) -> CommitRecord:
        """Accept the record of another writer where it committed the same bytes."""
        with storage_errors(self.path):
            objects = segment_objects(segment, self._record.encoding)
            digest = digest_of(describe(key, data) for key, data in objects)
            return settle(record_path(self.path, segment.index), digest)

    def write_facts(self, name: str, facts: dict[str, Any]) -> None:
        """Write or replace the JSON sidecar `facts/<name>.json`; never compared.

        Raises:
            StoreError: values that are not JSON, a disk that is full or read-only, or the writer was closed.
        """
        self._check_open()
        with storage_errors(self.path):
            write_facts(self.path, name, facts)

    def keep_facts(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the JSON sidecar `facts/<name>.json` unless there is one; return what the store has then.

        Raises:
            StoreError: values that are not JSON, a damaged file, a disk that is full or read-only, or the writer was
                closed.
        """
        self._check_open()
        with storage_errors(self.path):
            return keep_facts(self.path, name, facts)

    def facts(self, name: str) -> dict[str, Any] | None:
        """Return what `write_facts` wrote under this name, in this start or an earlier one, or None.

        Raises:
            StoreError: the file is damaged.
        """
        with storage_errors(self.path):
            return read_facts(self.path, name)

    def write_dictionary(self, tokens: Sequence[str] | None, decoder_norms: Mapping[str, Array]) -> None:
        """Write the string of every vocabulary id, and per site the norms [C] of the decoder rows; once per store.

        Writing the same again does nothing.

        Raises:
            IdentityError: the store has another dictionary.
            StoreError: the disk is full or read-only, or the writer was closed.
        """
        self._check_open()
        with storage_errors(self.path):
            publish_dictionary(self.path, tokens, decoder_norms, self._record.encoding.profile, alone=self._lock.alone)

    def close(self) -> None:
        """Let another writer in, once the segment that a thread may be writing is committed; this one writes no more.

        Committed segments are durable with or without this call.
        """
        with self._writing:
            self._is_closed = True
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ScoreWriter {self.path}: {len(self.committed)} of {self._record.num_segments} segments committed>"

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(
                f"{self.path}: this writer was closed, and another one may be writing; open the store again with "
                "`ScoreWriter.create_or_resume`"
            )

    def _check_raced(self, index: int, keys: Sequence[str]) -> None:
        """Tell of keys that the writer of another generation committed while this one was committing them."""
        try:
            with storage_errors(self.path):
                self._others.refuse(keys)
        except CorpusError as error:
            raise CorpusError(
                f"{error}. Segment {index}, of another corpus, was committed at the same moment, so the store has "
                "these documents twice: `gradsae drop` takes out both"
            ) from error

    def _check_shared(self, index: int, facts: dict[str, Any]) -> None:
        """Refuse a segment whose sites, objectives or value columns are not those of the segments before it."""
        for other in list(self._commits.values())[:1]:
            for name in _SHARED_FACTS:
                if facts[name] != other.facts[name]:
                    raise StoreError(
                        f"segment {index} has {name} {facts[name]}; the store's other segments have "
                        f"{other.facts[name]}: write it to another store"
                    )
