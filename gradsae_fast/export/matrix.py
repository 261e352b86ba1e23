"""Scores as a sparse matrix: documents × latents or tokens × latents, made block by block.

Letters: M documents of a segment, S chosen documents, R rows of a block, C latents, Z non-zeros of a block.

A stored entry is a latent that is active in the row; its value may be 0 (a sum that cancels, no positive part). A
column's number is the latent's, also where only some latents are chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from gradsae_fast.errors import QueryError
from gradsae_fast.export.nonzeros import Run, check_latents, first_documents, read_runs, read_tokens, value_dtype
from gradsae_fast.export.provenance import PROVENANCE, describe_export, to_text
from gradsae_fast.export.target import check_count
from gradsae_fast.ranking.columns import text_column
from gradsae_fast.ranking.question import SUMS, Question, one_of, resolve
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.ranking.tally import tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

ROWS = ("documents", "tokens")
VALUES = ("influence", "positive", "absolute", "activation")
DOCUMENT_COLUMNS = {"segment": "<i4", "document_index": "<i8", "num_tokens": "<i8"}
TOKEN_COLUMNS = {"segment": "<i4", "document_index": "<i8", "position": "<i4", "token_id": "<i4", "mask": "|u1"}
_INT32_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixQuestion:
    """A matrix that is asked for."""

    store: ScoreStore
    selection: Selection
    question: Question
    rows: str
    per_token: bool
    latents: Array | None
    provenance: dict[str, object]

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the table of rows, apart from `key`, and their dtypes."""
        return DOCUMENT_COLUMNS if self.rows == "documents" else TOKEN_COLUMNS

    @property
    def dtype(self) -> str:
        """Dtype of the values: sums are float64, a token's values float32 where the store's are."""
        return "<f8" if self.rows == "documents" else value_dtype(self.question).str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Neighbouring rows of a matrix."""

    keys: list[str]  # of documents of which this block has the first row
    key_R: Array  # int64, number of the row's document among all keys so far
    length_R: Array  # int64, entries of each row
    latent_Z: Array  # int32, ascending in a row
    value_Z: Array
    columns: dict[str, Array]  # of the table of rows


def ask_matrix(
    store: ScoreStore,
    *,
    export: str,
    rows: str,
    by: str,
    per_token: bool,
    site: str | None,
    objective: str | None,
    document: str | Sequence[str] | None,
    where: str | None,
    latent: int | Sequence[int] | None,
    include_special: bool | None,
) -> MatrixQuestion:
    """Check what is asked for (arguments as in `to_csr`).

    Raises:
        QueryError: a name or latent is unknown, nothing is selected, or a setting has no effect.
    """
    one_of("rows", rows, ROWS)
    if rows == "tokens" and per_token:
        raise QueryError("per_token has no effect on rows of one token each; leave it out, or ask for rows='documents'")
    question = resolve(
        store,
        by=by,
        k=None,
        site=site,
        objective=objective,
        include_special=include_special,
        allowed=SUMS if rows == "documents" else VALUES,
    )
    selection = select(store, document=document, where=where)
    latents = check_latents(latent, question)
    provenance = describe_export(
        store,
        selection,
        question,
        export=export,
        rows=rows,
        per_token=per_token,
        document=document,
        where=where,
        latents=latents,
    )
    return MatrixQuestion(
        store=store,
        selection=selection,
        question=question,
        rows=rows,
        per_token=per_token,
        latents=latents,
        provenance=provenance,
    )


def to_csr(
    store: ScoreStore,
    *,
    rows: str = "documents",
    by: str = "influence",
    per_token: bool = False,
    site: str | None = None,
    objective: str | None = None,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    latent: int | Sequence[int] | None = None,
    include_special: bool | None = None,
) -> tuple[sparse.csr_array, pa.Table]:
    """Return the scores of the chosen documents as a matrix, and what its rows are; both wholly in memory.

    Args:
        store, site, objective, include_special: as in every ranking (see `ranking.question.resolve`).
        rows: "documents" (sums over a document's counted tokens, float64) or "tokens" (a counted token each).
        by: influence, positive, absolute, activation; of documents also frequency (active / counted tokens).
        per_token: of documents, means over their counted tokens; a frequency is one already.
        document, where: document keys and a condition on metadata; all documents without them.
        latent: numbers of latents whose entries are kept; None for all. The matrix has all C columns anyway.

    Returns:
        The matrix, and a table with one row for each of its: key (of the document), segment, document_index (among
        the documents of committed segments); of documents num_tokens (counted); of tokens position, token_id, mask.
        The table's metadata has the export's provenance.

    Raises:
        QueryError: a name or latent is unknown, nothing is selected, or no chosen token counts.
    """
    asked = ask_matrix(
        store,
        export="csr",
        rows=rows,
        by=by,
        per_token=per_token,
        site=site,
        objective=objective,
        document=document,
        where=where,
        latent=latent,
        include_special=include_special,
    )
    blocks = list(read_blocks(asked))
    check_count(sum(len(block.value_Z) for block in blocks), "non-zeros")
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([block.length_R for block in blocks]))])
    index = np.int32 if indptr[-1] <= _INT32_MAX else np.int64
    matrix = sparse.csr_array(
        (
            np.concatenate([block.value_Z for block in blocks]).astype(asked.dtype, copy=False),
            np.concatenate([block.latent_Z for block in blocks]).astype(index, copy=False),
            indptr.astype(index),
        ),
        shape=(len(indptr) - 1, asked.question.num_latents),
    )
    keys = [key for block in blocks for key in block.keys]
    columns = {name: np.concatenate([block.columns[name] for block in blocks]) for name in asked.columns}
    key_R = np.concatenate([block.key_R for block in blocks])
    return matrix, row_table(keys, key_R, columns, to_text(asked.provenance))


def row_table(keys: Sequence[str], key_R: Array, columns: dict[str, Array], provenance: str) -> pa.Table:
    """Make the table of a matrix's rows."""
    key = text_column(keys).take(pa.array(key_R))
    return pa.table({"key": key, **columns}).replace_schema_metadata({PROVENANCE: provenance})


def read_blocks(asked: MatrixQuestion) -> Iterator[Block]:
    """Yield the rows in order: of documents a segment at a time, of tokens a run at a time."""
    return _document_blocks(asked) if asked.rows == "documents" else _token_blocks(asked)


def _document_blocks(asked: MatrixQuestion) -> Iterator[Block]:
    question, num_keys = asked.question, 0
    first = first_documents(asked.store)
    for segment, slots_S in asked.selection:
        part = tally(asked.store, segment, slots_S, question, by=question.by)
        keep_P = slice(None) if asked.latents is None else np.isin(part.latent_P, asked.latents)
        row_P = part.row_P[keep_P]
        amount_P = part.amount_P(question.by)[keep_P].astype(np.float64)
        if asked.per_token or question.by == "frequency":
            amount_P /= part.num_tokens_S[row_P]
        segment_keys = segment.document_keys()
        yield Block(
            keys=[segment_keys[slot] for slot in slots_S.tolist()],
            key_R=num_keys + np.arange(len(slots_S)),
            length_R=np.bincount(row_P, minlength=len(slots_S)),
            latent_Z=part.latent_P[keep_P].astype(np.int32),
            value_Z=amount_P,
            columns={
                "segment": np.full(len(slots_S), segment.index, np.int32),
                "document_index": first[segment.index] + slots_S,
                "num_tokens": part.num_tokens_S,
            },
        )
        num_keys += len(slots_S)


def _token_blocks(asked: MatrixQuestion) -> Iterator[Block]:
    num_keys = 0
    for tokens in read_tokens(asked.store, asked.selection, asked.question):
        segment_keys, last = tokens.segment.document_keys(), -1
        for run in read_runs(tokens, asked.question, asked.latents):
            slot_R = tokens.document_N[run.token_R]
            new = np.unique(slot_R[slot_R > last])
            fresh_R = np.concatenate([[slot_R[0] != last], np.diff(slot_R) > 0])
            yield Block(
                keys=[segment_keys[slot] for slot in new.tolist()],
                key_R=num_keys - 1 + np.cumsum(fresh_R),
                length_R=run.length_R,
                latent_Z=run.latent_Z,
                value_Z=_value(run, asked.question.by),
                columns={
                    "segment": np.full(len(slot_R), tokens.segment.index, np.int32),
                    "document_index": tokens.first_document + slot_R,
                    "position": tokens.position_N[run.token_R].astype(np.int32),
                    "token_id": tokens.token_id_N[run.token_R].astype(np.int32),
                    "mask": tokens.mask_N[run.token_R],
                },
            )
            num_keys, last = num_keys + len(new), int(slot_R[-1])


def _value(run: Run, by: str) -> Array:
    values = {
        "influence": run.influence_Z,
        "positive": np.maximum(run.influence_Z, 0),
        "absolute": np.abs(run.influence_Z),
        "activation": run.activation_Z,
    }
    return values[by]
