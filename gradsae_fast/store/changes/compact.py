"""Fewer, longer segments: runs of small neighbours are written as one each, documents in their order.

Many small segments cost every question an opened file for each. What is written is what a plan with longer segments
would have written, but for the number of the segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gradsae_fast.errors import QueryError
from gradsae_fast.store.changes.revise import Reviser, revising
from gradsae_fast.store.changes.rewrite import concatenate
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records.effective import Effective, read_effective
from gradsae_fast.store.records.generations import Generation, read_generations

TOKENS_PER_SEGMENT = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What was compacted, or would be; bytes of all segments before and after, after None where nothing was done."""

    path: Place
    num_documents: int
    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int | None


def compact_segments(
    path: str | Place, *, tokens_per_segment: int = TOKENS_PER_SEGMENT, dry_run: bool = False
) -> CompactReport:
    """Write runs of neighbouring segments as one each, as long as they have at most so many tokens together.

    Segments of different generations stay apart, and so do those between which one is not committed yet. Every answer
    stays what it was. An interrupted call has done a part, and the next one does the rest; to call it again afterwards
    changes nothing. It takes the memory of a segment of `tokens_per_segment`.

    Raises:
        QueryError: `tokens_per_segment` is not positive.
        BusyError: another process writes to the store.
        FormatError: a store of version 1, or of a newer release.
        StoreError: missing, damaged, read-only, or on a full disk; or what was replaced could not be deleted.
    """
    if tokens_per_segment < 1:
        raise QueryError(f"got tokens_per_segment = {tokens_per_segment}; expected a positive number")
    if dry_run:
        store = place_of(path)
        before = read_effective(store)
        saved = sum(_num_visible(before, run) - 1 for run in _runs(before, read_generations(store), tokens_per_segment))
        return _report(store, before, len(before.visible) - saved, None)
    with revising(path) as reviser:
        before = reviser.effective
        while runs := _runs(reviser.effective, reviser.generations, tokens_per_segment):
            for run in runs:
                _put(reviser, run)
                if reviser.is_full:
                    break
            reviser.publish()
        after = reviser.effective
        return _report(reviser.path, before, len(after.visible), _num_bytes(after))


def _runs(effective: Effective, generations: Sequence[Generation], tokens_per_segment: int) -> list[tuple[int, ...]]:
    """Return the numbers of neighbouring segments that become one, of each run; at least two of them have documents."""
    last_of_generation = {generation.segments.stop - 1 for generation in generations}
    runs, run, tokens = list[tuple[int, ...]](), list[int](), 0
    end = -1  # the committed segment with which the run ends
    for number, record in effective.records.items():
        more = int(record.facts["counts"]["tokens"])
        is_next = end + 1 == effective.covers[number][0] and end not in last_of_generation
        if run and not (is_next and tokens + more <= tokens_per_segment):
            runs.append(tuple(run))
            run, tokens = [], 0
        run.append(number)
        tokens, end = tokens + more, effective.covers[number][-1]
    runs.append(tuple(run))
    return [run for run in runs if _num_visible(effective, run) > 1]


def _num_visible(effective: Effective, run: Sequence[int]) -> int:
    return sum(not effective.is_emptied(number) for number in run)


def _put(reviser: Reviser, run: Sequence[int]) -> None:
    visible = reviser.effective.visible
    reviser.put(run, concatenate([reviser.read(number) for number in run if number in visible]))


def _num_bytes(effective: Effective) -> int:
    return sum(record.num_bytes for record in effective.records.values())


def _report(store: Place, before: Effective, segments_after: int, bytes_after: int | None) -> CompactReport:
    return CompactReport(
        path=store,
        num_documents=sum(int(record.facts["counts"]["documents"]) for record in before.records.values()),
        segments_before=len(before.visible),
        segments_after=segments_after,
        bytes_before=_num_bytes(before),
        bytes_after=bytes_after,
    )
