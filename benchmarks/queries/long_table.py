"""The same non-zeros as a database would hold them: one long Parquet table, in order of token and in order of latent.

Columns: token and document (of the whole store), latent, activation, projection, counted. A table of documents beside
it has their counted tokens and whether they are in group a or b.
"""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.queries.questions import Subjects
from gradsae_fast import records
from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.selection import select
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore, StoredSegment

BY_TOKEN, BY_LATENT, DOCUMENTS = "by-token.parquet", "by-latent.parquet", "documents.parquet"


def export(store: ScoreStore, folder: Path, subjects: Subjects) -> None:
    """Write the three tables; what is there already is kept."""
    (site,), (objective,) = store.sites, store.objectives
    if objective == "continuation-prob":
        raise QueryError("its influences have a factor for each document, which these tables do not hold")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / BY_TOKEN).exists():
        writer, tokens, documents = None, 0, 0
        for segment in store.segments:
            table = _nonzeros(store, segment, site, objective, tokens, documents)
            writer = writer or pq.ParquetWriter(folder / BY_TOKEN, table.schema, compression="zstd")
            writer.write_table(table)
            tokens, documents = tokens + segment.num_tokens, documents + segment.num_documents
        if writer is not None:
            writer.close()
    if not (folder / BY_LATENT).exists():
        with duckdb.connect(config={"memory_limit": "4GB", "temp_directory": str(folder / "spill")}) as base:
            base.execute(
                f"COPY (SELECT * FROM '{folder / BY_TOKEN}' ORDER BY latent, token) TO '{folder / BY_LATENT}' "
                "(FORMAT parquet, COMPRESSION zstd)"
            )
    pq.write_table(_documents(store, subjects), folder / DOCUMENTS)


def _nonzeros(
    store: ScoreStore, segment: StoredSegment, site: str, objective: str, first_token: int, first_document: int
) -> pa.Table:
    scores = segment.site(site).by_token()
    token_Z = np.repeat(np.arange(segment.num_tokens), np.diff(scores.indptr))
    counted_N = records.counted_tokens(segment.token_column("mask"), store.aggregates_include_special)
    return pa.table(
        {
            "token": (first_token + token_Z).astype(np.uint32),
            "document": (first_document + segment.token_column("document")[token_Z]).astype(np.uint32),
            "latent": scores.indices.astype(np.uint32),
            "activation": scores.activation,
            "projection": scores.projections[objective],
            "counted": counted_N[token_Z],
        }
    )


def _documents(store: ScoreStore, subjects: Subjects) -> pa.Table:
    edges = np.cumsum([0, *(segment.num_documents for segment in store.segments)])
    first = {segment.index: int(edge) for segment, edge in zip(store.segments, edges[:-1], strict=True)}

    def members(condition: str) -> Array:
        member = np.zeros(edges[-1], bool)
        for segment, slots in select(store, where=condition):
            member[first[segment.index] + slots] = True
        return member

    return pa.table(
        {
            "document": np.arange(edges[-1], dtype=np.uint32),
            "key": [key for segment in store.segments for key in segment.document_keys()],
            "counted": np.concatenate([segment.counted_tokens() for segment in store.segments]).astype(np.uint32),
            "a": members(subjects.a),
            "b": members(subjects.b),
        }
    )
