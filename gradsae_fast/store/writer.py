"""The writing end of a store: create or resume it, write each segment once, crash at will."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradsae_fast.errors import StoreError
from gradsae_fast.records import SegmentScores
from gradsae_fast.store.commits import (
    COMMITS,
    SEGMENTS,
    CommitRecord,
    find_records,
    missing_objects,
    prepare,
    publish_segment,
    read_record,
    remove_uncommitted,
)
from gradsae_fast.store.contracts import check_segment
from gradsae_fast.store.dictionary import publish_dictionary
from gradsae_fast.store.durable import TEMPORARY, make_folder, probe_exclusive, remove_temporaries, storage_errors
from gradsae_fast.store.encoding import Encoding, segment_facts, segment_objects
from gradsae_fast.store.facts import read_facts, write_facts
from gradsae_fast.store.identity import RUN_FILE, RunRecord, create_or_compare
from gradsae_fast.store.layout import Array
from gradsae_fast.store.lock import LOCK_FILE, WriterLock

_SHARED_FACTS = ("sites", "objectives", "values")


class ScoreWriter:
    """Writes segments to a store; made by `create_or_resume`, one at a time per store.

    `write` may be called from another thread than the one that made the writer, by one thread at a time.
    """

    def __init__(self, path: Path, lock: WriterLock, record: RunRecord, commits: dict[int, CommitRecord]) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._lock = lock
        self._record = record
        self._commits = commits

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        *,
        run: dict[str, Any],
        identity: dict[str, Any],
        num_segments: int,
        precision_bits: int = 10,
        profile: str = "compact",
        aggregates_include_special: bool = False,
    ) -> Self:
        """Open a store for writing, new or interrupted, and delete what a killed writer left uncommitted.

        Args:
            path: the store's folder; absent, empty, or a store of the same run.
            run: facts kept with the store and not compared on resume. Those of the first start are kept.
            identity: JSON values, flat or nested, that a resumed run must share.
            num_segments: segments of the plan.
            precision_bits: bits of significand kept: 3, 7, 10, or 23 for exact values.
            profile: `compact` or `portable`, see `codecs`.
            aggregates_include_special: whether stored sums count masked tokens too.

        Raises:
            IdentityError: the store belongs to another run.
            BusyError: another process writes to it.
            FormatError: it was written by a newer release.
            StoreError: not a store, damaged, read-only, on a full disk or on an unfit file system.
        """
        store = Path(path)
        encoding = Encoding(
            precision_bits=precision_bits, profile=profile, aggregates_include_special=aggregates_include_special
        )
        asked = RunRecord(identity=identity, run=run, num_segments=num_segments, encoding=encoding)
        with storage_errors(store):
            make_folder(store)
            _refuse_strangers(store)
            lock = WriterLock(store)
            try:
                probe_exclusive(store)
                record = create_or_compare(store, asked)
                commits = _recover(store, num_segments)
            except BaseException:
                lock.release()
                raise
        return cls(store, lock, record, commits)

    @property
    def committed(self) -> frozenset[int]:
        """Segments that are written; the others are still to do."""
        return frozenset(self._commits)

    def write(self, segment: SegmentScores) -> CommitRecord:
        """Write one segment: wholly and durably, or not at all.

        Raises:
            StoreError: a segment that is written already, outside the plan, or inconsistent; a full or broken disk.
        """
        with self._writing:
            return self._write(segment)

    def _write(self, segment: SegmentScores) -> CommitRecord:
        index = segment.index
        if not 0 <= index < self._record.num_segments:
            raise StoreError(f"segment {index} is outside the plan of {self._record.num_segments} segments")
        if index in self._commits:
            raise StoreError(f"segment {index} is committed already; `committed` lists what to skip")
        check_segment(segment)
        facts = segment_facts(segment)
        self._check_shared(index, facts)
        with storage_errors(self.path):
            commit = publish_segment(self.path, index, segment_objects(segment, self._record.encoding), facts)
        self._commits[index] = commit
        return commit

    def write_facts(self, name: str, facts: dict[str, Any]) -> None:
        """Write or replace the JSON sidecar `facts/<name>.json`; never compared.

        Raises:
            StoreError: values that are not JSON, or a disk that is full or read-only.
        """
        with storage_errors(self.path):
            write_facts(self.path, name, facts)

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
        """
        with storage_errors(self.path):
            publish_dictionary(self.path, tokens, decoder_norms, self._record.encoding.profile)

    def close(self) -> None:
        """Let another writer in, once the segment that a thread may be writing is committed.

        Committed segments are durable with or without this call.
        """
        with self._writing:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ScoreWriter {self.path}: {len(self._commits)} of {self._record.num_segments} segments committed>"

    def _check_shared(self, index: int, facts: dict[str, Any]) -> None:
        """Refuse a segment whose sites, objectives or value columns are not those of the segments before it."""
        for other in list(self._commits.values())[:1]:
            for name in _SHARED_FACTS:
                if facts[name] != other.facts[name]:
                    raise StoreError(
                        f"segment {index} has {name} {facts[name]}; the store's other segments have "
                        f"{other.facts[name]}: write it to another store"
                    )


def _refuse_strangers(store: Path) -> None:
    """Refuse a folder that holds something else; a start that was killed early leaves a lock and temporary files."""
    if (store / RUN_FILE).exists():
        return
    names = sorted(path.name for path in store.iterdir())
    strangers = [name for name in names if name != LOCK_FILE and not name.startswith(TEMPORARY)]
    if strangers:
        half = "; it looks like a half-copied store" if COMMITS in strangers else ""
        raise StoreError(
            f"{store} is not empty and not a store: it has {', '.join(strangers[:5])} but no {RUN_FILE}{half}; "
            "expected a new or empty folder, or a store to resume"
        )


def _recover(store: Path, num_segments: int) -> dict[int, CommitRecord]:
    """Read what is committed, check that it is all there, and clear what is not committed."""
    if (store / SEGMENTS).exists() and not (store / COMMITS).exists():
        raise StoreError(
            f"{store} has segments but no commit records: it looks half-copied; copy the whole folder again"
        )
    prepare(store)
    for folder in (store, *filter(Path.is_dir, store.iterdir())):
        remove_temporaries(folder)
    commits = {index: read_record(path) for index, path in find_records(store).items()}
    for index, commit in commits.items():
        faults = missing_objects(store, commit)
        if index >= num_segments or faults:
            what = f"its object {faults[0][0]} {faults[0][1]}" if faults else f"the plan has {num_segments} segments"
            raise StoreError(f"{store}: segment {index} is damaged: {what}; run `gradsae repair`, then this again")
    remove_uncommitted(store, commits.values())
    return commits
