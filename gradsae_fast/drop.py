"""Documents dropped from a store, chosen by key or by condition, and its index made anew."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.index import build_index
from gradsae_fast.ranking.selection import keys_of, select
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.changes.drop import DropReport, drop_documents
from gradsae_fast.store.places.place import Place


def drop(
    store: str | Place,
    document: str | Sequence[str] | None = None,
    *,
    where: str | None = None,
    dry_run: bool = False,
    sweep: bool = False,
) -> DropReport:
    """Take documents out of a store for good: no query has them any more, and none of its files.

    Args:
        store: the store.
        document: their keys; a key that was dropped before is passed over.
        where: a condition over metadata, as in rankings; not together with `document`.
        dry_run: only look what would be done.
        sweep: in a bucket, delete what other writers left unfinished too, which may have the documents; only while none
            of them is at work. It may be given alone.

    Raises:
        QueryError: a key that no document has, a condition that none meets, all documents, or both or neither given.
        BusyError: another process writes to the store.
        FormatError: a store of version 1 (`gradsae merge` makes one of version 2 of it), or of a newer release.
        StoreError: missing, damaged, read-only, or on a full disk; or what was replaced could not be deleted.
    """
    none_named = document is None and where is None
    if (document is not None and where is not None) or (none_named and (dry_run or not sweep)):
        raise QueryError("expected either keys of documents or a condition (--where): what is dropped is gone for good")
    keys = keys_of(document) or [] if where is None else partial(_keys_where, where=where)
    report = drop_documents(store, keys, dry_run=dry_run, sweep=sweep)
    if not dry_run:
        index_complete(store)
    return report


def index_complete(store: str | Place) -> None:
    """Make the index of a complete store where it has none; an incomplete one gets it when its extraction ends."""
    opened = open_scores(store)
    if opened.is_complete and opened.index is None and opened.segments:
        build_index(store)


def _keys_where(store: ScoreStore, where: str) -> list[str]:
    chosen = Counter(
        keys[slot]
        for segment, slots in select(store, where=where)
        for keys in [segment.document_keys()]
        for slot in slots
    )
    of_all = Counter(key for segment in store.segments for key in segment.document_keys() if key in chosen)
    for key, count in chosen.items():
        if of_all[key] != count:
            raise QueryError(
                f"{of_all[key]} documents of {store.path} have the key {key!r}, and {count} of them meet {where!r}; "
                "nothing was dropped, as documents are dropped by their keys: drop this one by its key, or change the "
                "condition"
            )
    return list(chosen)
