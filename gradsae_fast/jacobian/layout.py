"""A Jacobian store on disk: the protocol and the arrays of a score store, with tables of its own.

    run.json                identity, settings, facts of the first start; checksummed
    commits/<k>.json        a segment is there when, and only when, its record is
    segments/<k>-<attempt>/ one Zarr group: the arrays declared below, one-dimensional, a checksum in every chunk
    facts/plan.json         the cut of the corpus
    facts/gate.json         BOS, FVU and L0 of both SAEs, and the median norms that sinks are measured by

Dimensions: token N, document M, below Z1 (latents of the lower dictionary over all tokens), above Z2, pair P (a token's
upper latents x its lower latents, row by row, token after token), edge R (a pair of latents that meets on a token).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.jacobian.edges import Edges, SegmentJacobian, sum_edges
from gradsae_fast.records import Array, SparseScores, counted_tokens
from gradsae_fast.store.arrays.stored import encode_array, encode_group
from gradsae_fast.store.arrays.strings import encode_strings
from gradsae_fast.store.format.codecs import round_significand
from gradsae_fast.store.format.layout import LATENT, TOKENS, ArraySpec, latent_dtype

SEGMENT_FORMAT = "gradsae.jacobian.segment"


def _array(name: str, dtype: str, dim: str, meaning: str) -> ArraySpec:
    return ArraySpec(name=name, dtype=dtype, dims=(dim,), meaning=meaning)


def _strings(name: str, meaning: str) -> tuple[ArraySpec, ArraySpec]:
    return (
        _array(f"documents/{name}/bytes", "uint8", "byte", f"{meaning}; UTF-8, end to end"),
        _array(f"documents/{name}/offsets", "int64", "document_edge", "entry i is bytes[offsets[i]:offsets[i+1]]"),
    )


def _latents(group: str, dim: str, where: str) -> tuple[ArraySpec, ...]:
    return (
        _array(
            f"{group}/indptr", "int64", "token_edge", f"token n's latents {where} are entries indptr[n] to indptr[n+1]"
        ),
        _array(f"{group}/indices", LATENT, dim, "latent id, ascending inside a token"),
        _array(f"{group}/activation", "float32", dim, "activation, rounded"),
    )


DOCUMENTS = (*_strings("key", "the document's id"), *_strings("text", "the document's text"))
LOWER = _latents("lower", "below", "below")
UPPER = _latents("upper", "above", "above")
VALUE = _array("value", "float32", "pair", "d(upper latent)/d(lower latent), rounded; each token's block row by row")
EDGES = (
    _array("edges/indptr", "int64", "upper_edge", "edges of upper latent c are entries indptr[c] to indptr[c+1]"),
    _array("edges/lower", LATENT, "edge", "lower latent, ascending inside an upper one"),
    _array("edges/count", "uint32", "edge", "counted tokens on which both are active"),
    _array("edges/sum", "float64", "edge", "Σ J over them, of the rounded values"),
    _array("edges/absolute", "float64", "edge", "Σ |J|"),
    _array("edges/maximum", "float32", "edge", "max |J|"),
)


def segment_objects(segment: SegmentJacobian, precision_bits: int, profile: str) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) of every object: a pure function, so equal segments give equal bytes."""
    groups: set[str] = set()
    for spec, values in _arrays(segment, precision_bits):
        parts = spec.name.split("/")
        for group in ("/".join(parts[:depth]) for depth in range(len(parts))):
            if group not in groups:
                groups.add(group)
                root = {"format": SEGMENT_FORMAT, "segment": segment.index}
                yield f"{group}/zarr.json".lstrip("/"), encode_group({} if group else root)
        for key, data in encode_array(values, spec, profile).items():
            yield f"{spec.name}/{key}", data


def segment_facts(segment: SegmentJacobian) -> dict[str, Any]:
    """Return what the commit record says about a segment besides its objects."""
    return {
        "counts": {
            "tokens": len(segment.tokens.token_id),
            "documents": len(segment.documents.key),
            "masked": int(np.count_nonzero(segment.tokens.mask)),
            "lower": len(segment.lower.indices),
            "upper": len(segment.upper.indices),
            "pairs": len(segment.value_P),
        },
        "num_latents": [segment.lower.num_latents, segment.upper.num_latents],
    }


def _arrays(segment: SegmentJacobian, bits: int) -> Iterator[tuple[ArraySpec, Array]]:
    lower, upper = segment.lower, segment.upper
    value_P = round_significand(segment.value_P, bits)
    edges = sum_edges(lower, upper, value_P, counted_tokens(segment.tokens.mask, include_special=False))
    for spec in TOKENS:
        column = ArraySpec(name=f"tokens/{spec.name}", dtype=spec.dtype, dims=spec.dims, meaning=spec.meaning)
        yield column, _typed(getattr(segment.tokens, spec.name), np.dtype(spec.dtype))
    texts = [*encode_strings(segment.documents.key), *encode_strings(segment.documents.text)]
    yield from zip(DOCUMENTS, texts, strict=True)
    yield from _site(LOWER, lower, bits)
    yield from _site(UPPER, upper, bits)
    yield VALUE, value_P
    yield from _edges(edges, lower.num_latents, upper.num_latents)


def _site(specs: tuple[ArraySpec, ...], latents: SparseScores, bits: int) -> Iterator[tuple[ArraySpec, Array]]:
    columns = (latents.indptr, latents.indices, round_significand(latents.activation, bits))
    for spec, values in zip(specs, columns, strict=True):
        dtype = latent_dtype(latents.num_latents) if spec.dtype == LATENT else np.dtype(spec.dtype)
        yield spec, _typed(values, dtype)


def _edges(edges: Edges, num_lower: int, num_upper: int) -> Iterator[tuple[ArraySpec, Array]]:
    indptr = np.searchsorted(edges.upper_R, np.arange(num_upper + 1))
    columns = (indptr, edges.lower_R, edges.count_R, edges.sum_R, edges.absolute_R, edges.maximum_R)
    for spec, values in zip(EDGES, columns, strict=True):
        dtype = latent_dtype(num_lower) if spec.dtype == LATENT else np.dtype(spec.dtype)
        yield spec, _typed(values, dtype)


def _typed(values: Array, dtype: np.dtype[Any]) -> Array:
    """The stored dtype; an integer may not wrap."""
    if dtype.kind == "u" and len(values) and int(values.max()) > np.iinfo(dtype).max:
        raise StoreError(f"a Jacobian store keeps at most {np.iinfo(dtype).max} there, got {values.max()}")
    return np.ascontiguousarray(values, dtype)
