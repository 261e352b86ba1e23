"""Documents that go for good: the segments that have them are written again without them.

It is one revision, and so all or nothing, unless it is about more than a gigabyte of segments; then it is several.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gradsae_fast.counts import counted
from gradsae_fast.errors import QueryError
from gradsae_fast.spelling import did_you_mean
from gradsae_fast.store.changes.revise import revising
from gradsae_fast.store.changes.rewrite import leave_out
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.reader import ScoreStore, open_scores
from gradsae_fast.store.records.effective import Effective, read_effective

_FEW = 5  # keys that a message names


@dataclass(frozen=True, slots=True, kw_only=True)
class DropReport:
    """What was dropped, or would be.

    Bytes are those of the segments that had the documents, before and after; None where nothing was done.
    """

    path: Place
    num_documents: int
    num_tokens: int
    num_segments: int  # that were written again
    num_before: int  # documents asked for that were dropped before
    bytes_before: int
    bytes_after: int | None
    unfinished: tuple[str, ...] = ()  # in a bucket: folders of killed writers, or ones at work, that may have them too


def drop_documents(
    path: str | Place,
    keys: Iterable[str] | Callable[[ScoreStore], Iterable[str]],
    *,
    dry_run: bool = False,
    sweep: bool = False,
) -> DropReport:
    """Take documents out of a store for good: no query has them any more, and none of its files.

    A key that was dropped before is passed over, so that an interrupted command can be given again. Where the store is
    extracted again after a repair, the documents are left out. It takes the memory of one segment, and on the disk, for
    a while, as much again as the segments that have the documents, or a gigabyte.

    Args:
        path: the store.
        keys: ids of the documents, or what chooses them in the store; of several documents with one id, all go.
        dry_run: only look what would be done.
        sweep: in a bucket, delete what other writers left unfinished too; only while none of them is at work.

    Raises:
        QueryError: a key that no document has, no keys, or those of all documents.
        BusyError: another process writes to the store.
        FormatError: a store of version 1, or of a newer release.
        StoreError: missing, damaged, read-only, or on a full disk; or what was replaced could not be deleted.
    """
    if dry_run:
        store = place_of(path)
        opened = open_scores(store, use_index=False)
        wanted = _wanted(keys, opened)
        return _report(opened, _find(opened, read_effective(store), wanted), wanted, bytes_after=None)
    with revising(path, sweep=sweep) as reviser:
        wanted = _wanted(keys, reviser.opened)
        found = _find(reviser.opened, reviser.effective, wanted) if wanted or not sweep else {}
        report, bytes_after = _report(reviser.opened, found, wanted, bytes_after=0), 0
        for number, here in found.items():
            if reviser.is_full:
                reviser.publish()
            record = reviser.put([number], leave_out(reviser.read(number), here), sorted(here))
            bytes_after += record.num_bytes
        if found:
            reviser.publish()
        gone = [number for number, keys_of in reviser.effective.tombstones.items() if keys_of & wanted]
        unfinished = tuple(reviser.unfinished(max(gone, default=-1)))
    return replace(report, bytes_after=bytes_after, unfinished=unfinished)


def _wanted(keys: Iterable[str] | Callable[[ScoreStore], Iterable[str]], store: ScoreStore) -> frozenset[str]:
    return frozenset(keys(store) if callable(keys) else keys)


def _find(store: ScoreStore, effective: Effective, wanted: frozenset[str]) -> dict[int, frozenset[str]]:
    """Return by segment which of the keys it has."""
    if not wanted:
        raise QueryError("got no document to drop; expected at least one key")
    found, kept = dict[int, frozenset[str]](), 0
    for segment in store.segments:
        keys = segment.document_keys()
        kept += sum(key not in wanted for key in keys)
        if here := wanted.intersection(keys):
            found[segment.index] = here
    gone = frozenset[str]().union(*effective.tombstones.values())
    unknown = sorted(wanted.difference(gone, *found.values()))
    if unknown:
        more = f" and {len(unknown) - _FEW} more" if len(unknown) > _FEW else ""
        known = [key for segment in store.segments for key in segment.document_keys()]
        raise QueryError(
            f"no committed document of {store.path} has the key {', '.join(map(repr, unknown[:_FEW]))}{more}; nothing "
            f"was dropped: {did_you_mean(unknown[0], known)}; or choose documents with --where"
        )
    if found and not kept:
        raise QueryError(
            f"these are all of the {counted(store.num_documents, 'document')} of {store.path}; nothing was dropped: "
            "delete the folder instead"
        )
    return found


def _report(
    store: ScoreStore, found: Mapping[int, Collection[str]], wanted: frozenset[str], *, bytes_after: int | None
) -> DropReport:
    touched = [segment for segment in store.segments if segment.index in found]
    dropped = tokens = 0
    for segment in touched:
        here = [key in found[segment.index] for key in segment.document_keys()]
        dropped += sum(here)
        tokens += int(segment.scored_tokens()[np.array(here)].sum())
    return DropReport(
        path=store.path,
        num_documents=dropped,
        num_tokens=tokens,
        num_segments=len(touched),
        num_before=len(wanted.difference(*found.values())),
        bytes_before=sum(segment.num_bytes for segment in touched),
        bytes_after=bytes_after,
    )
