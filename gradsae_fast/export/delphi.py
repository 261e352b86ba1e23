"""Activations as the cache that EleutherAI's delphi explains latents from: safetensors files by range of latents.

PATH/<hook point>/<first>_<last>.safetensors, one file for each of `splits` ranges, each with

    tokens        int64 [rows, context]: the tokens of the chosen documents end to end, cut into rows; the last row is
                  filled up with token `fill_id`
    activations   float32 [non-zeros] (delphi itself writes float16, where values above 65,504 overflow)
    locations     uint16 [non-zeros, 3], or uint32 where a number needs it: row, column, latent − first

and PATH/<hook point>/config.json. The hook point is named as in delphi: relative to the model without its head, so that
`model.layers.18` becomes `layers.18`. Every token of a document is there; activations are those of counted tokens. The
cache has no influences, and documents of which parts lie in one row are not told apart: `documents` in config.json says
where each begins.

Memory is a run (see `nonzeros`), a segment's tables and 1 MiB of a file; what grows lies in scratch files beside PATH.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.export.neuronpedia import model_name
from gradsae_fast.export.nonzeros import SegmentTokens, check_latents, read_runs, read_tokens
from gradsae_fast.export.provenance import PROVENANCE, describe_export, to_text
from gradsae_fast.export.spool import Spool
from gradsae_fast.export.target import Exported, check_count, check_target, replacing
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.ranking.selection import select
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.places.place import disk_path_of

_UINT16 = 1 << 16
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Split:
    """One file in the making."""

    first: int
    last: int
    locations: Spool
    activations: Spool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stream:
    """The tokens in the making, and what was written of them."""

    tokens: Spool
    documents: list[tuple[str, int]]  # key, place of its first token in the stream


def write_delphi(
    store: ScoreStore,
    path: str | Path,
    *,
    splits: int = 5,
    context: int = 256,
    site: str | None = None,
    objective: str | None = None,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    latent: int | Sequence[int] | None = None,
    include_special: bool | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the activations of one site as a cache of delphi (files above).

    Args:
        store, site, include_special: as in every ranking (see `ranking.question.resolve`).
        path: the folder that holds one folder for each hook point (delphi's `latents`); made where it is missing.
        splits: files that the latents are spread over.
        context: tokens of a row; a multiple of the length of delphi's examples (32 by default).
        objective: activations have none; needed only for the provenance of a store with several.
        document, where: document keys and a condition on metadata; all documents without them.
        latent: numbers of latents; None for all.
        overwrite: replace the hook point's folder, if a cache is in it.

    Raises:
        QueryError: a name or latent is unknown, nothing is selected, or the path cannot be written to or is a folder
            of something else.
    """
    question = resolve(store, by="activation", k=None, site=site, objective=objective, include_special=include_special)
    if context < 1 or not 1 <= splits <= question.num_latents:
        raise QueryError(
            f"got context = {context} and splits = {splits}; expected 1 or more tokens, "
            f"and 1 to {question.num_latents} splits (latents)"
        )
    hookpoint = _hookpoint(question.site)
    selection = select(store, document=document, where=where)
    latents = check_latents(latent, question)
    provenance = describe_export(
        store, selection, question, export="delphi", document=document, where=where, latents=latents
    )
    folder = _folder(path)
    _check_replaceable(folder / hookpoint)
    with replacing(folder / hookpoint, overwrite=overwrite, beside=folder.resolve()) as (result, work):
        parts = [_split(work, first, last) for first, last in ranges(question.num_latents, splits)]
        stream = _fill(read_tokens(store, selection, question), parts, question, latents, context, work)
        check_count(count := sum(part.activations.length for part in parts), "non-zeros")
        config = _configuration(store, question, stream, context, splits) | {PROVENANCE: provenance}
        stream.tokens.append(np.full(-stream.tokens.length % context, config["fill_id"]))
        result.mkdir()
        for part in parts:
            _write_split(result, part, stream.tokens, context, to_text(provenance))
        (result / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="ascii")
    return Exported(path=folder / hookpoint, count=count, unit="non-zero")


def _hookpoint(site: str) -> str:
    """Return delphi's name of a site, which becomes a folder."""
    name = site.removeprefix("model.")
    if Path(name).name != name:
        raise QueryError(
            f"the site {site!r} cannot be the name of a folder, as delphi's cache needs; export another one"
        )
    return name


def _split(work: Path, first: int, last: int) -> _Split:
    return _Split(
        first=first,
        last=last,
        locations=Spool(work / f"locations-{first}", "<u4"),
        activations=Spool(work / f"activations-{first}", "<f4"),
    )


def _configuration(store: ScoreStore, question: Question, stream: _Stream, context: int, splits: int) -> dict[str, Any]:
    return {
        "model_name": model_name(store, question.site),
        "cache_ctx_len": context,
        "ctx_len": context,  # the name that delphi's loader asks for; its writer stores the other one
        "n_tokens": stream.tokens.length,
        "n_splits": splits,
        "fill_id": int(store.identity.get("tokens", {}).get("bos_id") or 0),
        "documents": stream.documents,
    }


def _folder(path: str | Path) -> Path:
    """Return the folder of hook points, made where it is missing."""
    folder = disk_path_of(path)
    check_target(folder, overwrite=True)
    if folder.exists() and not folder.is_dir():
        raise QueryError(f"{folder} is a file; expected a folder for hook points, or a new path; choose another one")
    folder.mkdir(exist_ok=True)
    return folder


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / "config.json").is_file():
        raise QueryError(
            f"{folder} is no cache of delphi (it has no config.json), so it is not replaced; expected an earlier "
            "export or a new path; move it away, or choose another one"
        )


def ranges(num_latents: int, splits: int) -> list[tuple[int, int]]:
    """Return the first and last latent of each file, as delphi cuts them.

    >>> ranges(10, 3)
    [(0, 2), (3, 5), (6, 9)]
    """
    edges = [int(edge) for edge in np.linspace(0, num_latents, splits + 1)]
    return [(first, stop - 1) for first, stop in pairwise(edges)]


def _fill(
    segments: Iterator[SegmentTokens],
    parts: list[_Split],
    question: Question,
    latents: Array | None,
    context: int,
    work: Path,
) -> _Stream:
    """Append every segment's tokens and non-zeros to the scratch files."""
    stream = _Stream(tokens=Spool(work / "tokens", "<i8"), documents=[])
    firsts = np.array([part.first for part in parts])
    for tokens in segments:
        here_N, start = _in_stream(tokens), stream.tokens.length
        place_N = start + np.cumsum(here_N) - 1
        keys = tokens.segment.document_keys()
        found, at = np.unique(tokens.document_N[here_N], return_index=True)
        stream.documents.extend((keys[slot], start + int(n)) for slot, n in zip(found.tolist(), at, strict=True))
        stream.tokens.append(tokens.token_id_N[here_N])
        for run in read_runs(tokens, question, latents):
            place_Z = place_N[run.token_Z]
            split_Z = np.searchsorted(firsts, run.latent_Z, side="right") - 1
            for number, part in enumerate(parts):
                mine = np.flatnonzero(split_Z == number)
                place, latent = place_Z[mine], run.latent_Z[mine] - part.first
                part.locations.append(np.stack([place // context, place % context, latent], axis=1))
                part.activations.append(run.activation_Z[mine])
    return stream


def _in_stream(tokens: SegmentTokens) -> Array:
    """Which tokens belong to the chosen documents, counted or not, bool [N]."""
    chosen_M = np.zeros(tokens.segment.num_documents, bool)
    chosen_M[tokens.slots_S] = True
    return chosen_M[tokens.document_N]


def _write_split(folder: Path, part: _Split, tokens: Spool, context: int, provenance: str) -> None:
    """Write a safetensors file: the length of the header, the header in JSON, the arrays end to end."""
    rows, entries = tokens.length // context, part.activations.length
    narrow = max(rows, context, part.last - part.first + 1) <= _UINT16
    kind, itemsize = ("U16", 2) if narrow else ("U32", 4)
    layout = {
        "tokens": ("I64", [rows, context], 8 * tokens.length),
        "activations": ("F32", [entries], 4 * entries),
        "locations": (kind, [entries, 3], 3 * itemsize * entries),
    }
    header: dict[str, Any] = {"__metadata__": {PROVENANCE: provenance}}
    end = 0
    for name, (dtype, shape, size) in layout.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with (folder / f"{part.first}_{part.last}.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in tokens.pieces():
            file.write(piece.tobytes())
        part.activations.copy_to(file)
        part.locations.copy_to(file, np.dtype(f"<u{itemsize}"))
