"""Put the scores of a segment's batches, which come in order of length, back into corpus order.

Letters: M documents, N scored tokens of the segment, Z non-zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradsae_fast.method import Method
from gradsae_fast.records import (
    Array,
    Batch,
    DocumentStatus,
    DocumentTable,
    SegmentScores,
    SparseScores,
    TokenDocument,
    TokenMask,
    TokenTable,
    Window,
    empty_scores,
)
from gradsae_fast.score import BatchScores
from gradsae_fast.stages import span


class SegmentBuilder:
    """Collects batches of one segment; `finish` orders them and makes the tables."""

    def __init__(
        self,
        index: int,
        documents: Sequence[TokenDocument],
        *,
        num_latents: Mapping[str, int],
        method: Method,
        quarantine: bool,
    ) -> None:
        """`num_latents` has every site, in the order in which the store keeps them."""
        self.index = index
        self.documents = documents
        self.num_latents = num_latents
        self.method = method
        self.quarantine = quarantine
        self.first_row_M = np.cumsum([0, *(document.num_tokens for document in documents)])
        self.windows: list[Window] = []
        self.scores: list[BatchScores] = []
        self.values = {name: np.zeros(len(documents)) for name in self._value_columns().values()}

    def add(self, batch: Batch, scores: BatchScores) -> None:
        """Take one batch's scores."""
        self.windows.extend(batch.windows)
        self.scores.append(scores)
        slots = [window.slot for window in batch.windows]
        for (site, objective), column in self._value_columns().items():
            np.add.at(self.values[column], slots, scores.values[site][objective])

    def _value_columns(self) -> dict[tuple[str, str], str]:
        """Columns of objective values: several spliced sites have one each, otherwise one site speaks for all."""
        sites = list(self.num_latents)
        if self.method.use_error_term or len(sites) == 1:
            return {(sites[0], name): name for name in self.method.objectives}
        return {(site, name): f"{name}@{site}" for site in sites for name in self.method.objectives}

    @span("assemble")
    def finish(self) -> SegmentScores:
        """The whole segment, in corpus order; quarantined documents have no rows."""
        rows_N = np.concatenate([np.zeros(0, np.int64), *(self._destination(window) for window in self.windows)])
        order_N = np.argsort(rows_N)
        mask_N = _concatenate([scores.mask_N for scores in self.scores], np.uint8)[order_N]
        document_N = np.repeat(np.arange(len(self.documents)), [document.num_tokens for document in self.documents])
        bad_documents = (
            np.unique(document_N[(mask_N & TokenMask.NONFINITE) != 0]) if self.quarantine else np.zeros(0, int)
        )
        kept_N = ~np.isin(document_N, bad_documents)
        tokens = self._tokens(document_N, mask_N, order_N)
        return SegmentScores(
            index=self.index,
            tokens=TokenTable(**{name: column[kept_N] for name, column in tokens.items()}),
            documents=self._documents(bad_documents),
            sites={path: self._site(path, order_N[kept_N]) for path in self.num_latents},
        )

    def _destination(self, window: Window) -> Array:
        """Row of each scored token of a window among all rows of the segment."""
        return np.arange(window.num_scored) + self.first_row_M[window.slot] + window.first_position

    def _site(self, path: str, order_N: Array) -> SparseScores:
        parts = [scores.sites[path] for scores in self.scores]
        return _reorder(parts, order_N) if parts else empty_scores(0, self.num_latents[path], self.method.objectives)

    def _tokens(self, document_N: Array, mask_N: Array, order_N: Array) -> dict[str, Array]:
        context = [np.arange(window.num_context, len(window.token_ids)) for window in self.windows]
        lengths = [document.num_tokens for document in self.documents]
        columns = {
            "token_id": [document.token_ids for document in self.documents],
            "position": [np.arange(length) for length in lengths],
            "char_start": [document.char_start for document in self.documents],
            "char_end": [document.char_end for document in self.documents],
        }
        return {
            **{name: _concatenate(parts, np.uint32) for name, parts in columns.items()},
            "document": document_N.astype(np.uint32),
            "context": _concatenate(context, np.uint32)[order_N],
            "mask": mask_N,
        }

    def _documents(self, bad_documents: Array) -> DocumentTable:
        status = np.array(
            [DocumentStatus.EMPTY if d.num_tokens == 0 else DocumentStatus.SCORED for d in self.documents], np.uint8
        )
        status[bad_documents] = DocumentStatus.QUARANTINED
        num_tokens = np.array([document.num_tokens for document in self.documents], np.uint32)
        num_tokens[bad_documents] = 0
        sources = [document.document for document in self.documents]
        columns = sorted({name for source in sources for name in source.metadata})
        values = {name: column.copy() for name, column in self.values.items()}
        for column in values.values():
            column[bad_documents] = np.nan
        return DocumentTable(
            key=[source.key for source in sources],
            source=[source.source for source in sources],
            row=np.array([source.row for source in sources], np.int64),
            num_tokens=num_tokens,
            status=status,
            text=[source.full_text for source in sources],
            metadata={name: [source.metadata.get(name) for source in sources] for name in columns},
            objectives=values,
        )


def _concatenate(parts: Sequence[Any], dtype: Any) -> Array:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def _reorder(parts: Sequence[SparseScores], order_N: Array) -> SparseScores:
    """Concatenate CSR pieces and take rows in the given order."""
    counts = np.concatenate([np.diff(part.indptr) for part in parts])
    starts = np.cumsum(counts) - counts
    taken = counts[order_N]
    indptr = np.concatenate([[0], np.cumsum(taken)])
    source_Z = np.repeat(starts[order_N] - indptr[:-1], taken) + np.arange(indptr[-1])
    return SparseScores(
        indptr=indptr,
        indices=np.concatenate([part.indices for part in parts])[source_Z],
        activation=np.concatenate([part.activation for part in parts])[source_Z],
        projections={
            name: np.concatenate([part.projections[name] for part in parts])[source_Z] for name in parts[0].projections
        },
        num_latents=parts[0].num_latents,
    )
