"""Documents × latents as AnnData (`.h5ad`), for scanpy and what is built on it.

    X         the asked measure, CSR: a document's sum over its counted tokens, or the mean (per_token)
    layers    influence and activation (as X: sums or means), frequency (active / counted tokens)
    obs       named by document key; segment, document_index, num_tokens (counted), objective.<name> (the document's
              value of each objective, of `continuation-prob` its logarithm; missing where quarantined), then the
              metadata columns: text and JSON as categories, missing values missing
    var       named by the latent's number; latent; sums over the chosen documents as in `rank_latents`, 0 where it
              never fires; decoder_norm where the store has it; promoted and suppressed (JSON lists of tokens) where
              it was described
    uns       provenance: one JSON document

HDF5 takes no NUL in texts: it becomes "␀"; lone surrogates become "?". Of the names of metadata columns "/" becomes
"|"; "metadata." is put in front of a name that is taken or reserved. Keys that are equal after that get "-1", "-2" …

The matrices are appended segment by segment: memory is one segment's pairs, obs and var. HDF5 ends the process where a
disk fills up, so before each part there must be room for it without compression. Needs the package anndata.
"""

import errno
import json
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from gradsae_fast.errors import QueryError
from gradsae_fast.export.nonzeros import check_latents, first_documents
from gradsae_fast.export.npz import check_suffix
from gradsae_fast.export.provenance import PROVENANCE, describe_export, to_text
from gradsae_fast.export.target import Exported, check_count, replacing
from gradsae_fast.ranking.columns import json_column
from gradsae_fast.ranking.documents import METADATA_PREFIX
from gradsae_fast.ranking.latents import rank_latents
from gradsae_fast.ranking.question import SUMS, Question, resolve
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.ranking.tally import Tally, document_lengths, tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

LAYERS = ("influence", "activation", "frequency")
_CHUNK = 1 << 16
_SPARE = 1 << 24  # bytes that HDF5 may hold back until the file is closed: chunks of twelve arrays, its own tables
_RESERVED = {"", ".", "_index"}
_STATISTICS = (
    "num_active",
    "frequency",
    "influence",
    "positive",
    "absolute",
    "activation",
    "max_influence",
    "max_activation",
    "num_documents",
)


def write_anndata(
    store: ScoreStore,
    path: str | Path,
    *,
    by: str = "influence",
    per_token: bool = False,
    site: str | None = None,
    objective: str | None = None,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    latent: int | Sequence[int] | None = None,
    include_special: bool | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the chosen documents as AnnData (parts above).

    Args:
        store, site, objective, include_special: as in every ranking (see `ranking.question.resolve`).
        path: the file to write, ending in .h5ad; its folder must exist.
        by: what X holds: influence, positive, absolute, activation or frequency.
        per_token: X and the layers influence and activation hold means over a document's counted tokens, as groups are
            compared by in `contrast`.
        document, where: document keys and a condition on metadata; all documents without them.
        latent: numbers of latents, one column each; None for all.
        overwrite: replace a file that exists.

    Raises:
        QueryError: a name or latent is unknown, nothing is selected, the path cannot be written to, or anndata is not
            installed.
        StoreError: the disk has too little room.
    """
    anndata = _anndata()
    check_suffix(path, ".h5ad")
    question = resolve(
        store, by=by, k=None, site=site, objective=objective, include_special=include_special, allowed=SUMS
    )
    chosen: dict[str, Any] = {"document": document, "where": where}
    selection = select(store, **chosen)
    latents = check_latents(latent, question)
    column_C = np.arange(question.num_latents) if latents is None else latents
    provenance = describe_export(
        store, selection, question, export="anndata", per_token=per_token, latents=latents, **chosen
    )
    with replacing(path, overwrite=overwrite) as (result, _):
        obs = _document_columns(store, selection, question)
        frames = {
            "obs": _frame(obs, "key"),
            "var": _frame(_latent_columns(store, question, column_C, **chosen), "latent"),
            "uns": {PROVENANCE: to_text(provenance)},
        }
        _require_room(result, sum(int(frames[name].memory_usage(deep=True).sum()) for name in ("obs", "var")))
        h5py = import_module("h5py")  # anndata needs it
        with h5py.File(result, "w") as file:
            _write_frames(anndata, file, frames)
            count = _write_matrices(anndata, file, store, selection, question, column_C, per_token=per_token)
        check_count(count, "active latents")
    return Exported(path=Path(path), count=len(obs["key"]), unit="document")


def _require_room(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes + _SPARE:
        raise OSError(errno.ENOSPC, f"{free} bytes are free; HDF5 may need {num_bytes + _SPARE}")


def _write_frames(anndata: ModuleType, file: Any, frames: dict[str, Any]) -> None:
    """Write everything but matrices, with the attributes that make the file AnnData."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for group in ("layers", "obsm", "varm", "obsp", "varp"):
        anndata.io.write_elem(file, group, {})
    for group, frame in frames.items():
        anndata.io.write_elem(file, group, frame)


def _anndata() -> ModuleType:
    try:
        anndata = import_module("anndata")
        import_module("anndata.io")
    except ImportError as error:
        raise QueryError(
            f"the format anndata needs the package anndata, which is not there ({error}); "
            "install it with: pip install 'gradsae-fast[anndata]'"
        ) from error
    return anndata


def _write_matrices(
    anndata: ModuleType,
    file: Any,
    store: ScoreStore,
    selection: Selection,
    question: Question,
    column_C: Array,
    *,
    per_token: bool,
) -> int:
    """Append every segment's rows to X and the layers; return the number of entries of each."""
    amounts = {"X": question.by, **{f"layers/{name}": name for name in LAYERS}}
    empty = sparse.csr_matrix((0, len(column_C)))
    empty.indptr = empty.indptr.astype(np.int64)  # room for more than 2^31 entries
    options = {"chunks": (_CHUNK,), "compression": "gzip", "compression_opts": 1}
    for key in amounts:
        anndata.io.write_elem(file, key, empty, dataset_kwargs=options)
    matrices = {key: anndata.io.sparse_dataset(file[key]) for key in amounts}
    count = 0
    for segment, slots_S in selection:
        part = tally(store, segment, slots_S, question)
        place_P, keep_P = _places(part.latent_P, column_C)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(part.row_P[keep_P], minlength=len(slots_S)))])
        count += int(indptr[-1])
        _require_room(Path(file.filename), len(amounts) * 16 * (int(indptr[-1]) + len(slots_S)))
        for key, by in amounts.items():
            value_P = _amount(part, by, per_token=per_token)[keep_P]
            rows = sparse.csr_matrix((value_P, place_P[keep_P], indptr), shape=(len(slots_S), len(column_C)))
            matrices[key].append(rows)
    return count


def _places(latent_P: Array, column_C: Array) -> tuple[Array, Array]:
    """Return each pair's column, and whether its latent has one."""
    place_P = np.minimum(np.searchsorted(column_C, latent_P), len(column_C) - 1)
    return place_P, column_C[place_P] == latent_P


def _amount(part: Tally, by: str, *, per_token: bool) -> Array:
    amount_P = part.amount_P(by).astype(np.float64)
    return amount_P / part.num_tokens_S[part.row_P] if per_token or by == "frequency" else amount_P


def _document_columns(store: ScoreStore, selection: Selection, question: Question) -> dict[str, pa.Array]:
    """Make the columns of obs; `key` names the rows."""
    before = first_documents(store)
    facts: dict[str, list[Any]] = {name: [] for name in ("key", "segment", "document_index", "num_tokens")}
    known = dict.fromkeys(name for segment, _ in selection for name in segment.columns)
    metadata: dict[str, list[Any]] = {name: [] for name in known}
    for segment, slots_S in selection:
        keys, slots = segment.document_keys(), slots_S.tolist()
        facts["key"] += [keys[slot] for slot in slots]
        facts["segment"] += [segment.index] * len(slots)
        facts["document_index"] += (before[segment.index] + slots_S).tolist()
        facts["num_tokens"] += document_lengths(store, segment, question)[slots_S].tolist()
        for name, value_M in segment.objective_values().items():
            facts.setdefault(_shown(f"objective.{name}"), []).extend(value_M[slots_S].tolist())
        table = segment.metadata()
        for name, column in metadata.items():
            column += [table[name][slot] for slot in slots] if name in table else [None] * len(slots)
    columns = facts | _named(metadata, taken=set(facts))
    return {name: json_column(column) for name, column in columns.items()}


def _named(columns: dict[str, list[Any]], taken: set[str]) -> dict[str, list[Any]]:
    """Name columns so that HDF5 takes the names and none is there twice."""
    named: dict[str, list[Any]] = {}
    for name, column in columns.items():
        shown = _shown(name)
        while shown in _RESERVED or shown in taken or shown in named:
            shown = METADATA_PREFIX + shown
        named[shown] = column
    return named


def _shown(name: str) -> str:
    return plain(name).replace("/", "|")


def plain(text: str) -> str:
    """Return a text that HDF5 can hold: "␀" for NUL, "?" for a lone surrogate.

    >>> plain("a" + chr(0) + chr(0xD800))
    'a␀?'
    """
    return text.encode("utf-8", "replace").decode().replace("\0", "␀")


def _latent_columns(
    store: ScoreStore,
    question: Question,
    column_C: Array,
    *,
    document: str | Sequence[str] | None,
    where: str | None,
) -> dict[str, pa.Array]:
    """Make the columns of var; `latent` names the rows."""
    table = rank_latents(
        store,
        document=document,
        where=where,
        k=None,
        site=question.site,
        objective=question.objective,
        include_special=question.include_special,
    )
    latent = table.column("latent").to_numpy()
    columns: dict[str, pa.Array] = {"latent": pa.array(column_C)}
    for name in _STATISTICS:
        value_C = np.zeros(question.num_latents, table.column(name).to_numpy().dtype)
        value_C[latent] = table.column(name).to_numpy()
        columns[name] = pa.array(value_C[column_C])
    norm_C = store.decoder_norms(question.site)
    if norm_C is not None:
        columns["decoder_norm"] = pa.array(norm_C[column_C])
    return columns | _described_columns(store, question.site, column_C)


def _described_columns(store: ScoreStore, site: str, column_C: Array) -> dict[str, pa.Array]:
    described, vocabulary = store.described(site), store.token_strings()
    if described is None or vocabulary is None:
        return {}
    sides = {"promoted": described.promoted_CT, "suppressed": described.suppressed_CT}
    return {
        side: pa.array(
            [
                json.dumps([vocabulary[token] for token in tokens_T], ensure_ascii=True)
                for tokens_T in token_CT[column_C]
            ]
        )
        for side, token_CT in sides.items()
    }


def _frame(columns: dict[str, pa.Array], index: str) -> Any:
    """Make the data frame that anndata writes; pandas comes with it."""
    import pandas as pd
    from anndata.utils import make_index_unique

    names = pd.Index([plain(str(value)) for value in columns[index].to_pylist()], dtype=object)
    frame = pd.DataFrame(index=names if names.is_unique else make_index_unique(names))
    for name, column in columns.items():
        if name != "key":
            frame[name] = _series(column).array
    return frame


def _series(column: pa.Array) -> Any:
    import pandas as pd

    if pa.types.is_string(column.type):
        texts = [None if text is None else plain(text) for text in column.to_pylist()]
        categories = sorted({text for text in texts if text is not None})
        return pd.Series(pd.Categorical(texts, categories=pd.Index(categories, dtype=object)))
    if column.null_count and pa.types.is_integer(column.type):
        return pd.Series(column.to_pylist(), dtype="Int64")
    if pa.types.is_boolean(column.type):
        return pd.Series(column.to_pylist(), dtype="boolean" if column.null_count else "bool")
    return pd.Series(column.to_numpy(zero_copy_only=False))
