"""Every non-zero as one row of a Parquet file, which DuckDB, polars, pandas and Spark open.

    document          key, dictionary-encoded
    segment           segment of the store
    document_index    position among the documents of the store's committed segments, chosen or not
    position          of the token in its document
    token_id, token   vocabulary id and its string (no `token` where the store has no vocabulary)
    mask              bits of TokenMask; 0 counts (masked tokens are there only where they are asked for)
    latent, activation, projection, influence      projection and influence in the objective's unit

Row groups have at most a million rows. In token order, memory is one row group, a segment's table of tokens and its
keys; in latent order also the keys of all documents and, on disk beside the target, one copy of the rows at 37 bytes
each (45 where influences are scaled). The schema's metadata has the export's provenance as one JSON document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradsae_fast.export.buckets import Buckets
from gradsae_fast.export.nonzeros import Run, check_latents, compact, read_runs, read_tokens, value_dtype
from gradsae_fast.export.provenance import PROVENANCE, describe_export, to_text
from gradsae_fast.export.target import Exported, check_count, refuse_folder, replacing
from gradsae_fast.ranking.columns import text_column
from gradsae_fast.ranking.question import Question, one_of, resolve
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

ORDERS = ("token", "latent")
ROW_GROUP = 1_000_000
_ZSTD_LEVEL = 1
# Few values of a million repeat: bytes of one significance side by side compress better than a dictionary, and faster.
_FLOATS = ("activation", "projection", "influence")
_SORTED_BY = {
    "token": ("document_index", "position", "latent"),
    "latent": ("latent", "document_index", "position"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
    """What is exported."""

    store: ScoreStore
    selection: Selection
    question: Question
    latents: Array | None
    vocabulary: list[str] | None


def write_parquet(
    store: ScoreStore,
    path: str | Path,
    *,
    order: str = "token",
    site: str | None = None,
    objective: str | None = None,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    latent: int | Sequence[int] | None = None,
    include_special: bool | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the non-zeros of the chosen documents as a long table (columns above).

    Args:
        store, site, objective, include_special: as in every ranking (see `ranking.question.resolve`).
        path: the file to write; its folder must exist.
        order: "token" (documents in corpus order) or "latent": then one latent's rows lie together, and a reader that
            knows row-group statistics finds them without reading the rest.
        document, where: document keys and a condition on metadata; all documents without them.
        latent: numbers of latents; None for all.
        overwrite: replace a file that exists.

    Raises:
        QueryError: a name or latent is unknown, nothing is selected, or the path cannot be written to.
    """
    one_of("order", order, ORDERS)
    refuse_folder(path)
    question = resolve(store, by="influence", k=None, site=site, objective=objective, include_special=include_special)
    selection = select(store, document=document, where=where)
    latents = check_latents(latent, question)
    source = _Source(
        store=store, selection=selection, question=question, latents=latents, vocabulary=store.token_strings()
    )
    provenance = describe_export(
        store,
        selection,
        question,
        export="parquet",
        order=order,
        document=document,
        where=where,
        latents=latents,
    )
    schema = _schema(source).with_metadata({PROVENANCE: to_text(provenance)})
    with replacing(path, overwrite=overwrite) as (result, work):
        tables = _by_token(source) if order == "token" else _by_latent(source, work)
        count = _write(result, tables, schema, order)
        check_count(count, "non-zeros")
    return Exported(path=Path(path), count=count, unit="non-zero")


def _schema(source: _Source) -> pa.Schema:
    value = pa.from_numpy_dtype(value_dtype(source.question))
    text = pa.dictionary(pa.int32(), pa.string())
    columns = {
        "document": text,
        "segment": pa.int32(),
        "document_index": pa.int64(),
        "position": pa.int32(),
        "token_id": pa.int32(),
        "token": text,
        "mask": pa.uint8(),
        "latent": pa.int32(),
        "activation": pa.float32(),
        "projection": value,
        "influence": value,
    }
    if source.vocabulary is None:
        del columns["token"]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def _write(path: Path, tables: Iterator[dict[str, pa.Array]], schema: pa.Schema, order: str) -> int:
    """Write row groups of ROW_GROUP rows; return the number of rows."""
    options = {
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "use_dictionary": [name for name in schema.names if name not in _FLOATS],
        "use_byte_stream_split": list(_FLOATS),
        "sorting_columns": [pq.SortingColumn(schema.get_field_index(name)) for name in _SORTED_BY[order]],
    }
    count, held = 0, schema.empty_table()
    with pq.ParquetWriter(path, schema, **options) as writer:
        for columns in tables:
            held = pa.concat_tables([held, pa.table(columns, schema)])
            while held.num_rows >= ROW_GROUP:
                count += _write_group(writer, held.slice(0, ROW_GROUP))
                held = held.slice(ROW_GROUP)
        if held.num_rows:
            count += _write_group(writer, held)
    return count


def _write_group(writer: pq.ParquetWriter, group: pa.Table) -> int:
    # Chunks with dictionaries of their own would be written as plain text.
    writer.write_table(group.unify_dictionaries(), row_group_size=ROW_GROUP)
    return int(group.num_rows)


def _by_token(source: _Source) -> Iterator[dict[str, pa.Array]]:
    for tokens in read_tokens(source.store, source.selection, source.question):
        keys = text_column(tokens.segment.document_keys())
        for run in read_runs(tokens, source.question, source.latents):
            records = _records(run, source.question)
            slot_Z = records["document_index"] - tokens.first_document
            yield _columns(records, pa.DictionaryArray.from_arrays(slot_Z.astype(np.int32), keys), source)


def _by_latent(source: _Source, work: Path) -> Iterator[dict[str, pa.Array]]:
    keys, offset = list[str](), dict[int, int]()
    buckets = Buckets(work, _counts(source), _record_dtype(source.question), ROW_GROUP)
    for tokens in read_tokens(source.store, source.selection, source.question):
        offset[tokens.segment.index] = len(keys) - tokens.first_document
        keys += tokens.segment.document_keys()
        for run in read_runs(tokens, source.question, source.latents):
            buckets.add(_records(run, source.question))
    texts = text_column(keys)
    shift = np.zeros(max(offset, default=0) + 1, np.int64)
    shift[list(offset)] = list(offset.values())
    for records in buckets.read():
        key_Z = records["document_index"] + shift[records["segment"]]
        used, index_Z = compact(key_Z)
        yield _columns(records, pa.DictionaryArray.from_arrays(index_Z, texts.take(pa.array(used))), source)


def _counts(source: _Source) -> Array:
    """Non-zeros of each latent, but for masked tokens: what rows are spread over files by."""
    site = source.question.site
    parts = [segment.site(site).latent_stats(["count"]).columns["count"] for segment, _ in source.selection]
    return np.asarray(sum(parts), np.int64)


def _record_dtype(question: Question) -> np.dtype[np.void]:
    value = value_dtype(question)
    integers = [("segment", "<i4"), ("position", "<i4"), ("token_id", "<i4"), ("mask", "u1"), ("latent", "<i4")]
    values = [("activation", "<f4"), ("projection", value), ("influence", value)]
    return np.dtype([("document_index", "<i8"), *integers, *values])


def _records(run: Run, question: Question) -> Array:
    tokens, token_Z = run.tokens, run.token_Z
    records = np.zeros(len(token_Z), _record_dtype(question))
    records["segment"] = tokens.segment.index
    records["document_index"] = tokens.first_document + tokens.document_N[token_Z]
    records["position"] = tokens.position_N[token_Z]
    records["token_id"] = tokens.token_id_N[token_Z]
    records["mask"] = tokens.mask_N[token_Z]
    records["latent"] = run.latent_Z
    records["activation"] = run.activation_Z
    records["projection"] = run.projection_Z
    records["influence"] = run.influence_Z
    return records


def _columns(records: Array, document: pa.DictionaryArray, source: _Source) -> dict[str, pa.Array]:
    columns = {name: pa.array(np.ascontiguousarray(records[name])) for name in records.dtype.names or ()}
    columns["document"] = document
    if source.vocabulary is not None:
        columns["token"] = _token_texts(records["token_id"], source.vocabulary)
    return columns


def _token_texts(token_id_Z: Array, vocabulary: Sequence[str]) -> pa.DictionaryArray:
    used, index_Z = compact(token_id_Z)
    names = [vocabulary[number] if number < len(vocabulary) else f"<{number}>" for number in used.tolist()]
    return pa.DictionaryArray.from_arrays(index_Z, text_column(names))
