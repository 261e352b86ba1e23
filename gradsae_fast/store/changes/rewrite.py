"""Stored segments as the scores that they were written from: to leave documents out, or to make one of several.

Rounding is idempotent, sums are made anew from the rounded values, and metadata keeps its very JSON text. So to encode
what `read_scores` returns gives the bytes that are stored, and to encode a part or a concatenation of it gives the
bytes that the same part or concatenation would have had from the start.

N tokens, M documents, C latents, Z non-zeros.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.records import DocumentTable, SegmentScores, SparseScores, TokenTable
from gradsae_fast.store.arrays.strings import JsonText
from gradsae_fast.store.format.layout import TOKENS, Array
from gradsae_fast.store.places.links import PlainFolders, read_pieces
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.records.commits import CommitRecord
from gradsae_fast.store.records.objects import describe_pieces
from gradsae_fast.store.segment import StoredSegment

_NULL = JsonText("null")


def read_scores(segment: StoredSegment) -> SegmentScores:
    """Return all that a stored segment was made from, values as they were rounded.

    Raises:
        StoreError: damaged data.
    """
    return SegmentScores(
        index=segment.index,
        tokens=segment.tokens(),
        documents=replace(segment.documents(), metadata=segment.metadata_texts()),
        sites={site["name"]: segment.site(site["name"]).by_token() for site in segment.summary.facts["sites"]},
    )


def check_objects(store: Place, record: CommitRecord) -> None:
    """Read every object of a segment and compare its sums, before what it says is rewritten and it is deleted.

    Raises:
        StoreError: an object is not what was committed, or a link.
    """
    plain = PlainFolders(store)
    for known in record.objects:
        place = store / record.folder / known.key
        plain.check(f"{record.folder}/{known.key}".rpartition("/")[0])
        try:
            is_whole = describe_pieces(known.key, read_pieces(place)) == known
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            raise StoreError(
                f"{place} is not what was committed, so segment {record.facts['segment']} is not rewritten; run "
                "`gradsae verify`, then `gradsae repair`, and the same `gradsae extract` command, and then this again"
            )


def leave_out(segment: SegmentScores, keys: Collection[str]) -> SegmentScores:
    """Return a segment without the documents that have these keys; the others keep their order.

    A metadata column that no document has a value in any more is left out too.
    """
    keep_M = np.fromiter((key not in keys for key in segment.documents.key), bool, len(segment.documents.key))
    if keep_M.all():
        return segment
    keep_N = keep_M[segment.tokens.document]
    columns = {spec.name: getattr(segment.tokens, spec.name)[keep_N] for spec in TOKENS}
    slot_M = np.cumsum(keep_M) - 1
    return SegmentScores(
        index=segment.index,
        tokens=TokenTable(**columns | {"document": slot_M[columns["document"]].astype(np.uint32)}),
        documents=_kept_documents(segment.documents, keep_M),
        sites={site: _kept_tokens(scores, keep_N) for site, scores in segment.sites.items()},
    )


def _kept_documents(documents: DocumentTable, keep_M: Array) -> DocumentTable:
    kept = np.flatnonzero(keep_M).tolist()
    metadata = {name: [column[slot] for slot in kept] for name, column in documents.metadata.items()}
    return DocumentTable(
        key=[documents.key[slot] for slot in kept],
        source=[documents.source[slot] for slot in kept],
        text=[documents.text[slot] for slot in kept],
        row=documents.row[keep_M],
        num_tokens=documents.num_tokens[keep_M],
        status=documents.status[keep_M],
        metadata={
            name: column
            for name, column in metadata.items()
            if not _is_empty(column) or _is_empty(documents.metadata[name])
        },
        objectives={name: column[keep_M] for name, column in documents.objectives.items()},
    )


def _is_empty(column: Sequence[Any]) -> bool:
    return all(value is None or (isinstance(value, JsonText) and value == _NULL) for value in column)


def _kept_tokens(scores: SparseScores, keep_N: Array) -> SparseScores:
    lengths_N = np.diff(scores.indptr)
    keep_Z = np.repeat(keep_N, lengths_N)
    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum(lengths_N[keep_N])]),
        indices=scores.indices[keep_Z],
        activation=scores.activation[keep_Z],
        projections={name: values[keep_Z] for name, values in scores.projections.items()},
        num_latents=scores.num_latents,
    )


def concatenate(segments: Sequence[SegmentScores]) -> SegmentScores:
    """Return one segment with the documents of several, one after the other; it has the number of the first.

    A metadata column that only some of them have is null in the documents of the others, as it is in documents
    without a value of a segment that has the column.
    """
    first_document = np.cumsum([0, *(len(segment.documents.key) for segment in segments)])
    columns = {spec.name: _joined([getattr(one.tokens, spec.name) for one in segments]) for spec in TOKENS}
    columns["document"] = _joined(
        [one.tokens.document + np.uint32(base) for one, base in zip(segments, first_document, strict=False)]
    )
    return SegmentScores(
        index=segments[0].index,
        tokens=TokenTable(**columns),
        documents=_joined_documents([segment.documents for segment in segments]),
        sites={site: _joined_scores([segment.sites[site] for segment in segments]) for site in segments[0].sites},
    )


def _joined(parts: Sequence[Array]) -> Array:
    joined: Array = np.concatenate(parts)
    return joined


def _joined_documents(tables: Sequence[DocumentTable]) -> DocumentTable:
    names = [list(table.metadata) for table in tables]
    columns = names[0] if all(found == names[0] for found in names) else sorted({n for found in names for n in found})
    return DocumentTable(
        key=[key for table in tables for key in table.key],
        source=[source for table in tables for source in table.source],
        text=[text for table in tables for text in table.text],
        row=_joined([table.row for table in tables]),
        num_tokens=_joined([table.num_tokens for table in tables]),
        status=_joined([table.status for table in tables]),
        metadata={name: [value for table in tables for value in _column(table, name)] for name in columns},
        objectives={name: _joined([table.objectives[name] for table in tables]) for name in tables[0].objectives},
    )


def _column(table: DocumentTable, name: str) -> Sequence[Any]:
    return table.metadata.get(name, [None] * len(table.key))


def _joined_scores(parts: Sequence[SparseScores]) -> SparseScores:
    lengths_N = np.concatenate([np.diff(part.indptr) for part in parts])
    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum(lengths_N)]),
        indices=_joined([part.indices for part in parts]),
        activation=_joined([part.activation for part in parts]),
        projections={name: _joined([part.projections[name] for part in parts]) for name in parts[0].projections},
        num_latents=parts[0].num_latents,
    )
