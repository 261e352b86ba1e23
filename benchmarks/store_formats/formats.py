"""The formats that are compared: each writes scores into an empty folder and reads them back.

None of the others keeps an inverted index, sums, checksums or a commit protocol; ours is here with its token-major
arrays alone, so that like is held against like. Letters: N tokens, Z non-zeros.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from scipy import sparse

from benchmarks.store_formats.corpus import Scores
from gradsae_fast.records import Array
from gradsae_fast.store.arrays.stored import StoredArray, encode_array
from gradsae_fast.store.format.layout import BY_TOKEN, latent_dtype

Columns = Mapping[str, Array]
DELPHI_SPLITS = 5  # ranges of latents, one file each; delphi's default
ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to keep token-major scores."""

    name: str
    write: Callable[[Path, Scores], None]
    read: Callable[[Path], Columns]  # what a user of the format has in memory after loading
    entries: Callable[[Columns, Scores], Columns]  # of what was read: token, latent, activation, projection [Z]
    kept: Callable[[Array], Array] = lambda values: values  # what the format makes of float32 values


def check(form: Format, folder: Path, scores: Scores) -> None:
    """Hold what is read to what was written, bit by bit. AssertionError where it differs."""
    got = form.entries(form.read(folder), scores)
    expected = {
        "token": scores.token,
        "latent": scores.latent,
        "activation": form.kept(scores.activation),
        "projection": form.kept(scores.projection),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=f"{form.name}: {name}")


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_coo(folder: Path, scores: Scores) -> None:
    for name in ("token", "latent", "activation", "projection"):
        np.save(folder / f"{name}.npy", getattr(scores, name))


def _read_coo(folder: Path) -> Columns:
    return {path.stem: np.load(path) for path in folder.iterdir()}


def _write_npz(folder: Path, scores: Scores, *, compressed: bool) -> None:
    shape = (len(scores.row), scores.num_latents)
    matrix = sparse.csr_array((scores.activation, scores.latent.astype(np.int32), scores.indptr), shape=shape)
    sparse.save_npz(folder / "activation.npz", matrix, compressed=compressed)
    (np.savez_compressed if compressed else np.savez)(folder / "projection.npz", projection=scores.projection)


def _read_npz(folder: Path) -> Columns:
    matrix = sparse.load_npz(folder / "activation.npz")
    columns = {"indptr": matrix.indptr, "latent": matrix.indices, "activation": matrix.data}
    with np.load(folder / "projection.npz") as file:
        return {**columns, "projection": file["projection"]}


def _expand(columns: Columns, scores: Scores) -> Columns:
    """Compressed rows as entries."""
    token = np.repeat(np.arange(len(scores.row)), np.diff(columns["indptr"]))
    return {**columns, "token": token}


def _write_delphi(folder: Path, scores: Scores, *, dtype: str) -> None:
    """`locations` (row, position, latent less the range's first), values of `dtype`; one file for each range."""
    token = scores.token
    edges = np.linspace(0, scores.num_latents, DELPHI_SPLITS + 1).astype(int)
    for first, stop in pairwise(edges):
        kept = (scores.latent >= first) & (scores.latent < stop)
        place = np.stack([scores.row[token[kept]], scores.position[token[kept]], scores.latent[kept] - first], axis=1)
        narrow = np.uint16 if place.size == 0 or place.max() < 1 << 16 else np.uint32
        with np.errstate(over="ignore"):  # fp16 turns what is too large for it into Inf
            values = {
                "activations": scores.activation[kept].astype(dtype),
                "projections": scores.projection[kept].astype(dtype),
            }
        save_file({"locations": place.astype(narrow), **values}, folder / f"{first}_{stop - 1}.safetensors")


def _read_delphi(folder: Path) -> Columns:
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem.split("_")[0]))
    parts = [load_file(path) for path in paths]
    firsts = [int(path.stem.split("_")[0]) for path in paths]
    latent = [part["locations"][:, 2].astype(np.uint32) + first for part, first in zip(parts, firsts, strict=True)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "latent": np.concatenate(latent)}


def _delphi_entries(columns: Columns, scores: Scores) -> Columns:
    first_row = np.searchsorted(scores.row, np.arange(int(scores.row.max()) + 1)) if len(scores.row) else np.zeros(1)
    token = first_row[columns["locations"][:, 0]] + columns["locations"][:, 1]
    order = np.lexsort((columns["latent"], token))
    values = {"activation": columns["activations"], "projection": columns["projections"]}
    return {name: column[order] for name, column in {"token": token, "latent": columns["latent"], **values}.items()}


def _half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _write_parquet(folder: Path, scores: Scores, *, delta: bool) -> None:
    names = ("token", "latent", "activation", "projection")
    table = pa.table({name: getattr(scores, name) for name in names})
    encodings = {
        "use_dictionary": False,
        "column_encoding": dict(zip(names, ["DELTA_BINARY_PACKED"] * 2 + ["BYTE_STREAM_SPLIT"] * 2, strict=True)),
    }
    pq.write_table(
        table,
        folder / "scores.parquet",
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        **(encodings if delta else {}),
    )


def _read_parquet(folder: Path) -> Columns:
    table = pq.read_table(folder / "scores.parquet")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _write_ours(folder: Path, scores: Scores, *, profile: str) -> None:
    columns = {
        "indptr": scores.indptr,
        "indices": scores.latent.astype(latent_dtype(scores.num_latents)),
        "activation": scores.activation,
        "projection/{objective}": scores.projection,
    }
    for spec in BY_TOKEN:
        name = spec.name.split("/")[0]
        (folder / name).mkdir()
        for key, data in encode_array(columns[spec.name], spec, profile).items():
            (folder / name / key).write_bytes(data)


def _read_ours(folder: Path) -> Columns:
    columns = {path.name: StoredArray(path, path.name).read() for path in folder.iterdir()}
    return {**columns, "latent": columns["indices"]}


def _as_they_are(columns: Columns, scores: Scores) -> Columns:
    return columns


FORMATS = (
    Format(name="raw COO (npy)", write=_write_coo, read=_read_coo, entries=_as_they_are),
    Format(
        name="scipy npz (CSR)",
        write=lambda folder, scores: _write_npz(folder, scores, compressed=False),
        read=_read_npz,
        entries=_expand,
    ),
    Format(
        name="scipy npz (CSR), compressed",
        write=lambda folder, scores: _write_npz(folder, scores, compressed=True),
        read=_read_npz,
        entries=_expand,
    ),
    Format(
        name="delphi's safetensors, fp16",
        write=lambda folder, scores: _write_delphi(folder, scores, dtype="float16"),
        read=_read_delphi,
        entries=_delphi_entries,
        kept=_half,
    ),
    Format(
        name="delphi's safetensors, fp32",
        write=lambda folder, scores: _write_delphi(folder, scores, dtype="float32"),
        read=_read_delphi,
        entries=_delphi_entries,
    ),
    Format(
        name="parquet, zstd",
        write=lambda folder, scores: _write_parquet(folder, scores, delta=False),
        read=_read_parquet,
        entries=_as_they_are,
    ),
    Format(
        name="parquet, zstd, delta and byte-split",
        write=lambda folder, scores: _write_parquet(folder, scores, delta=True),
        read=_read_parquet,
        entries=_as_they_are,
    ),
    Format(
        name="ours, portable, token-major alone",
        write=lambda folder, scores: _write_ours(folder, scores, profile="portable"),
        read=_read_ours,
        entries=_expand,
    ),
    Format(
        name="ours, compact, token-major alone",
        write=lambda folder, scores: _write_ours(folder, scores, profile="compact"),
        read=_read_ours,
        entries=_expand,
    ),
)
