"""A segment without some of its documents, made value by value: what leaving them out is compared with."""

from collections.abc import Collection
from typing import Any

import numpy as np

from gradsae_fast.records import SegmentScores, SparseScores, empty_scores


def without(segment: SegmentScores, keys: Collection[str]) -> SegmentScores:
    """The same segment, had these documents never been in it: token by token and value by value."""
    kept = [slot for slot, key in enumerate(segment.documents.key) if key not in keys]
    rows = [n for n in range(len(segment.tokens.token_id)) if segment.tokens.document[n] in kept]
    table, tokens = segment.documents, segment.tokens
    metadata = {name: [column[slot] for slot in kept] for name, column in table.metadata.items()}
    had = {name: any(value is not None for value in column) for name, column in table.metadata.items()}
    columns = {name: np.array([getattr(tokens, name)[n] for n in rows], np.uint32) for name in tokens.__slots__}
    columns["document"] = np.array([kept.index(slot) for slot in columns["document"]], np.uint32)
    return SegmentScores(
        index=segment.index,
        tokens=type(tokens)(**columns),
        documents=type(table)(
            key=[table.key[slot] for slot in kept],
            source=[table.source[slot] for slot in kept],
            text=[table.text[slot] for slot in kept],
            row=np.array([table.row[slot] for slot in kept], np.int64),
            num_tokens=np.array([table.num_tokens[slot] for slot in kept], np.uint32),
            status=np.array([table.status[slot] for slot in kept], np.uint8),
            metadata={
                name: values for name, values in metadata.items() if any(v is not None for v in values) or not had[name]
            },
            objectives={name: np.array([v[slot] for slot in kept], float) for name, v in table.objectives.items()},
        ),
        sites={site: rows_of(scores, rows) for site, scores in segment.sites.items()},
    )


def rows_of(scores: SparseScores, rows: list[int]) -> SparseScores:
    parts = [slice(int(scores.indptr[n]), int(scores.indptr[n + 1])) for n in rows]
    if not parts:
        return empty_scores(0, scores.num_latents, tuple(scores.projections))

    def taken(values: Any) -> Any:
        return np.concatenate([values[part] for part in parts])

    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum([part.stop - part.start for part in parts])]),
        indices=taken(scores.indices),
        activation=taken(scores.activation),
        projections={name: taken(values) for name, values in scores.projections.items()},
        num_latents=scores.num_latents,
    )
