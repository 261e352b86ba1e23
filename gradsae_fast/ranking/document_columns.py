"""What conditions and groups know of a document: its metadata, its key and its length.

A name is looked up among the metadata columns first. Beside them there are two facts of every document:

    key           its id
    num_tokens    its tokens that count in the store's sums

A metadata column of the same name hides such a fact; `document.key` and `document.num_tokens` name it then.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gradsae_fast.errors import QueryError
from gradsae_fast.spelling import did_you_mean
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.places.ahead import announced
from gradsae_fast.store.segment import StoredSegment

PREFIX = "document."
FACTS: Mapping[str, Callable[[StoredSegment], list[Any]]] = {
    "key": lambda segment: segment.document_keys(),
    "num_tokens": lambda segment: segment.counted_tokens().tolist(),
}


def read_columns(store: ScoreStore, names: Iterable[str]) -> dict[str, list[Any]]:
    """Read these columns of all documents of a store, in the order of the corpus; None where one has no value.

    Raises:
        QueryError: there is no such column; the message has the closest known names.

    """
    wanted = list(dict.fromkeys(names))
    known = sorted({name for segment in store.segments for name in segment.columns})
    facts = {name: _fact(name, known) for name in wanted if name not in known}
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    for segment in announced(store.segments, lambda segment: segment.expect_metadata(wanted)):
        table = segment.metadata(wanted)
        missing = [None] * segment.num_documents
        for name, values in columns.items():
            values += facts[name](segment) if name in facts else table.get(name, missing)
    return columns


def _fact(name: str, known: Sequence[str]) -> Callable[[StoredSegment], list[Any]]:
    fact = FACTS.get(name.removeprefix(PREFIX))
    if fact is not None:
        return fact
    spelled = did_you_mean(name, [*known, *FACTS])
    raise QueryError(f"no document has a metadata column {name!r}; {spelled}")
