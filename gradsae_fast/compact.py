"""Segments of a store compacted into fewer, and its index made anew."""

from gradsae_fast.drop import index_complete
from gradsae_fast.store.changes.compact import TOKENS_PER_SEGMENT, CompactReport, compact_segments
from gradsae_fast.store.places.place import Place


def compact(
    store: str | Place, *, tokens_per_segment: int = TOKENS_PER_SEGMENT, dry_run: bool = False
) -> CompactReport:
    """Write runs of neighbouring segments as one each, as long as they have at most so many tokens together.

    Every answer stays what it was. An interrupted call has done a part, and the next one does the rest.

    Raises:
        QueryError: `tokens_per_segment` is not positive.
        BusyError: another process writes to the store.
        FormatError: a store of version 1 (`gradsae merge` makes one of version 2 of it), or of a newer release.
        StoreError: missing, damaged, read-only, or on a full disk; or what was replaced could not be deleted.
    """
    report = compact_segments(store, tokens_per_segment=tokens_per_segment, dry_run=dry_run)
    if not dry_run:
        index_complete(store)
    return report
