"""A sparse matrix as one `.npz` that scipy.sparse.load_npz opens, with the names of its rows in the same file.

    format, shape, indptr, indices, data      what scipy writes and reads; indices and indptr are int32, or int64 from
                                              2^31 entries on
    row_<column>        columns of the table of rows (see `to_csr`), one entry for each row
    row_key             number of the row's document among the keys
    key_bytes, key_offsets      keys of documents: key i is bytes[offsets[i]:offsets[i+1]] in UTF-8, where lone
                        surrogates are encoded like other characters (Python's `surrogatepass`), so that all survive
    provenance          bytes of the provenance, ASCII JSON

Arrays lie uncompressed in the zip file. Memory while writing is one segment of documents, or one run of tokens, and the
keys; the columns grow in scratch files beside the target.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse

from gradsae_fast.errors import QueryError
from gradsae_fast.export.matrix import (
    DOCUMENT_COLUMNS,
    TOKEN_COLUMNS,
    MatrixQuestion,
    ask_matrix,
    read_blocks,
    row_table,
)
from gradsae_fast.export.provenance import PROVENANCE, to_text
from gradsae_fast.export.spool import Spool
from gradsae_fast.export.target import Exported, check_count, refuse_folder, replacing
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.arrays.strings import decode_strings, encode_strings

_INT32_MAX = np.iinfo(np.int32).max
_PREFIX = "row_"


def write_csr(
    store: ScoreStore,
    path: str | Path,
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
    overwrite: bool = False,
) -> Exported:
    """Write the matrix that `to_csr` returns (same arguments) to a file, without holding it in memory.

    Raises:
        QueryError: as `to_csr`; the path does not end in .npz, or cannot be written to.
    """
    check_suffix(path, ".npz")
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
    with replacing(path, overwrite=overwrite) as (result, work):
        spools, keys = _fill(asked, work)
        check_count(spools["data"].length, "non-zeros")
        count = spools["data"].length
        _assemble(result, asked, spools, keys)
    return Exported(path=Path(path), count=count, unit="non-zero")


def read_csr(path: str | Path) -> tuple[sparse.csr_array, pa.Table]:
    """Read back what `write_csr` wrote, as `to_csr` returns it."""
    with np.load(path, allow_pickle=False) as file:
        keys = decode_strings(file["key_bytes"], file["key_offsets"])
        known = [name for name in (DOCUMENT_COLUMNS | TOKEN_COLUMNS) if _PREFIX + name in file]
        columns = {name: file[_PREFIX + name] for name in known}
        table = row_table(keys, file["row_key"], columns, file[PROVENANCE].tobytes().decode())
    return sparse.load_npz(path), table


def check_suffix(path: str | Path, suffix: str) -> None:
    """Refuse a name that the format's readers would not take.

    Raises:
        QueryError: the name does not end in the suffix, or is a folder's.
    """
    if Path(path).suffix != suffix:
        raise QueryError(f"got the path {path}; expected a name that ends in {suffix}; rename it")
    refuse_folder(path)


def _fill(asked: MatrixQuestion, work: Path) -> tuple[dict[str, Spool], list[str]]:
    """Write every column of every block to its scratch file; `indptr` begins without its 0."""
    kinds = {"indptr": "<i8", "indices": "<i4", "data": asked.dtype, "row_key": "<i8"}
    kinds |= {_PREFIX + name: dtype for name, dtype in asked.columns.items()}
    spools = {name: Spool(work / name, dtype) for name, dtype in kinds.items()}
    keys, end = list[str](), 0
    for block in read_blocks(asked):
        indptr = end + np.cumsum(block.length_R)
        end = int(indptr[-1])
        columns: Mapping[str, Array] = {
            "indptr": indptr,
            "indices": block.latent_Z,
            "data": block.value_Z,
            "row_key": block.key_R,
            **{_PREFIX + name: column for name, column in block.columns.items()},
        }
        for name, column in columns.items():
            spools[name].append(column)
        keys += block.keys
    return spools, keys


def _assemble(path: Path, asked: MatrixQuestion, spools: dict[str, Spool], keys: Sequence[str]) -> None:
    num_rows = spools["indptr"].length
    index = "<i4" if spools["data"].length <= _INT32_MAX else "<i8"
    text, offsets = encode_strings(keys)
    provenance = np.frombuffer(to_text(asked.provenance).encode(), np.uint8)
    small = {
        "format": np.array(b"csr"),
        "_is_array": np.array(True),
        "shape": np.array([num_rows, asked.question.num_latents], np.int64),
        "key_bytes": text,
        "key_offsets": offsets,
        PROVENANCE: provenance,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        for name, spool in spools.items():
            dtype = index if name in ("indptr", "indices") else None
            _copy(archive, name, spool, dtype, leading_zero=name == "indptr")


def _copy(archive: zipfile.ZipFile, name: str, spool: Spool, dtype: str | None, *, leading_zero: bool) -> None:
    stored = np.dtype(dtype or spool.dtype)
    header = {"descr": stored.str, "fortran_order": False, "shape": (spool.length + leading_zero,)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_2_0(file, header)
        if leading_zero:
            file.write(np.zeros(1, stored).tobytes())
        spool.copy_to(file, stored)
