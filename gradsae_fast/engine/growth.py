"""What a corpus must be to become a further generation of a store, checked before anything is written."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from gradsae_fast.errors import StoreError
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Document
from gradsae_fast.store import open_scores
from gradsae_fast.store.keys import KnownKeys, refuse_common
from gradsae_fast.store.records.effective import read_effective
from gradsae_fast.store.records.generations import check_comparable, generation_of_run, require_version_2


def check_growth(prepared: Prepared, tell: Callable[[str], None]) -> None:
    """Refuse a run that a store cannot go on with as a further generation; one that it has already goes on.

    A document whose key was dropped from the store is a new one, as what replaces another is dropped first; `tell` is
    told of it.

    Raises:
        StoreError: there is no store, or its own run never passed the gate.
        FormatError: a store of version 1.
        IdentityError: the run differs in more than its documents.
        CorpusError: a document has the key of one that the store has.
    """
    store = open_scores(prepared.config.store.path, use_index=False)
    if store.facts("gate") is None:
        raise StoreError(
            f"{store.path} has not passed its gate yet, which measures what its scores are masked by; run the command "
            "that began it (it may be stopped once the first segment is committed), then append"
        )
    identity = prepared.identity()
    if generation_of_run(store.generations, identity) is not None:
        return
    stored = store.generations[0].record
    require_version_2(store.path, stored)
    check_comparable(store.path, stored, replace(stored, identity=identity))
    dropped, again = frozenset().union(*read_effective(store.path).tombstones.values()), list[str]()
    refuse_common(store.path, KnownKeys(store.segments), _noting(prepared.corpus, dropped, again))
    if again:
        tell(
            f"{len(again):,} documents have keys that were dropped from the store ({', '.join(map(repr, again[:5]))}): "
            "they become new documents; where they must stay away, take them out of the corpus, or drop them again"
        )


def _noting(corpus: Iterable[Document], dropped: Collection[str], again: list[str]) -> Iterator[str]:
    """Yield the keys of documents, and put those that were dropped into `again`."""
    for document in corpus:
        if document.key in dropped:
            again.append(document.key)
        yield document.key
