"""A segment's values as the arrays and objects of its Zarr group: a pure function, so equal values give equal bytes.

N tokens, M documents, C latents, Z non-zeros, R pairs of a document and a latent.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsae_fast.errors import StoreError
from gradsae_fast.overlap import ahead
from gradsae_fast.records import DocumentTable, SegmentScores, SparseScores, counted_tokens
from gradsae_fast.stages import each, span
from gradsae_fast.store.arrays.inverted import invert
from gradsae_fast.store.arrays.stored import encode_array, encode_group
from gradsae_fast.store.arrays.strings import encode_json, encode_strings
from gradsae_fast.store.arrays.sums import CountedTokens, Pairs, find_pairs, sum_latents, sum_pairs
from gradsae_fast.store.format.codecs import round_significand
from gradsae_fast.store.format.layout import (
    BY_LATENT,
    BY_TOKEN,
    DOCUMENT_SUMS,
    DOCUMENTS,
    EXACT,
    EXACT_FORMAT,
    FORMAT_VERSION,
    LATENT,
    LATENT_STATS,
    SEGMENT_FORMAT,
    TOKENS,
    Array,
    ArraySpec,
    component,
    latent_dtype,
    of_side,
    place,
)
from gradsae_fast.store.format.polarity import POLARITIES, one_side, turned

_MOST_THREADS = 8  # that compress; the codecs leave the interpreter free
Values = Mapping[str, Array | Mapping[str, Array]]
Placed = Iterator[tuple[str, ArraySpec, Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How every segment of a store is written; part of the store's identity."""

    precision_bits: int
    profile: str
    aggregates_include_special: bool


def segment_objects(segment: SegmentScores, encoding: Encoding) -> Iterator[tuple[str, bytes]]:
    """Yield (key below the segment's folder, bytes) of every object of a checked segment."""
    root = {"format": SEGMENT_FORMAT, "format_version": FORMAT_VERSION, "segment": segment.index}
    attributes: dict[str, dict[str, Any]] = {"": root}
    for site, scores in segment.sites.items():
        attributes[f"sites/{component(site)}"] = {"site": site, "num_latents": scores.num_latents}
    yield from group_objects(_segment_parts(segment, encoding), attributes, encoding.profile)


def exact_objects(
    num_latents: Mapping[str, int], dense: Mapping[str, Array], drops: Mapping[tuple[str, str], Array], profile: str
) -> Iterator[tuple[str, bytes]]:
    """Yield the objects of a segment's sidecar of exact effects.

    Args:
        num_latents: C of each site.
        dense: ids [K] of each site's dense latents, ascending.
        drops: effects [M, K] by site and objective.
        profile: codec profile.
    """
    attributes: dict[str, dict[str, Any]] = {"": {"format": EXACT_FORMAT, "format_version": FORMAT_VERSION}}
    attributes |= {f"sites/{component(site)}": {"site": site, "num_latents": c} for site, c in num_latents.items()}
    yield from group_objects([_exact_arrays(num_latents, dense, drops)], attributes, profile)


def group_objects(
    parts: Iterable[Placed], attributes: Mapping[str, dict[str, Any]], profile: str
) -> Iterator[tuple[str, bytes]]:
    """Yield the objects of placed arrays, and of each group above them where its first array comes."""
    groups: set[str] = set()
    for path, objects in _encoded(parts, profile):
        for group in _parents(path):
            if group not in groups:
                groups.add(group)
                yield f"{group}/zarr.json".lstrip("/"), encode_group(attributes.get(group, {}))
        for key, data in objects.items():
            yield f"{path}/{key}", data


def _encoded(parts: Iterable[Placed], profile: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield path and objects of every array, in order.

    The arrays of a part are compressed side by side, and those of the next part are made meanwhile: a GPU scores more
    non-zeros a second than one core compresses. What is written does not depend on it.
    """
    num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="compress") as pool:
        for arrays in ahead(each("index", map(list, parts)), thread="index"):
            encoding = [(path, pool.submit(encode_array, values, spec, profile)) for path, spec, values in arrays]
            for path, encoded in encoding:
                with span("wait for compress"):
                    objects = encoded.result()
                yield path, objects


def segment_facts(segment: SegmentScores) -> dict[str, Any]:
    """Return what the commit record says about a segment besides its objects."""
    first = next(iter(segment.sites.values()))
    return {
        "counts": {
            "tokens": len(segment.tokens.token_id),
            "documents": len(segment.documents.key),
            "masked": int(np.count_nonzero(segment.tokens.mask)),
            "nnz": {site: len(scores.indices) for site, scores in segment.sites.items()},
        },
        "sites": [{"name": site, "num_latents": scores.num_latents} for site, scores in segment.sites.items()],
        "objectives": list(first.projections),
        "values": list(segment.documents.objectives),
        "columns": list(segment.documents.metadata),
    }


def _parents(path: str) -> Iterator[str]:
    """Yield the groups above an array, the root ("") first."""
    parts = path.split("/")
    return ("/".join(parts[:depth]) for depth in range(len(parts)))


def _segment_parts(segment: SegmentScores, encoding: Encoding) -> Iterator[Placed]:
    """Yield the arrays of tokens, of documents and of each site."""
    counted = counted_tokens(segment.tokens.mask, encoding.aggregates_include_special)
    edges = np.searchsorted(segment.tokens.document, np.arange(len(segment.documents.key) + 1))
    tokens = CountedTokens(edges=edges.astype(np.int64), counted=counted)
    yield _typed("tokens", TOKENS, {spec.name: getattr(segment.tokens, spec.name) for spec in TOKENS})
    yield _typed("documents", DOCUMENTS, _document_values(segment.documents, tokens))
    for site, scores in segment.sites.items():
        yield _site_arrays(f"sites/{component(site)}", _rounded(scores, encoding.precision_bits), tokens)


def _exact_arrays(
    num_latents: Mapping[str, int], dense: Mapping[str, Array], drops: Mapping[tuple[str, str], Array]
) -> Placed:
    for site, latents_K in dense.items():
        of_site = {objective: drop_MK.ravel() for (name, objective), drop_MK in drops.items() if name == site}
        values: Values = {"latents": latents_K, "drop/{objective}": of_site}
        yield from _typed(f"sites/{component(site)}", EXACT, values, num_latents[site])


def _typed(group: str, specs: tuple[ArraySpec, ...], values: Values, num_latents: int = 0) -> Placed:
    """Place values, each cast to the dtype that its spec declares."""
    for path, spec, array in place(group, specs, values):
        dtype = latent_dtype(num_latents) if spec.dtype == LATENT else np.dtype(spec.dtype)
        yield path, spec, _cast(array, dtype, path)


def _cast(values: Array, dtype: np.dtype[Any], path: str) -> Array:
    """Cast to the stored dtype: a sum beyond float32 becomes Inf, as its terms would; an integer may not wrap.

    Raises:
        StoreError: an integer that the stored dtype cannot hold.
    """
    if dtype.kind in "iu" and len(values) and not np.can_cast(values.dtype, dtype):
        low, high, limits = int(values.min()), int(values.max()), np.iinfo(dtype)
        if low < limits.min or high > limits.max:
            raise StoreError(f"{path} holds {low} to {high}; the format stores {limits.min} to {limits.max} there")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype)


def _document_values(documents: DocumentTable, tokens: CountedTokens) -> Values:
    values: dict[str, Array | Mapping[str, Array]] = {}
    for name in ("key", "source", "text"):
        values[f"{name}/bytes"], values[f"{name}/offsets"] = encode_strings(getattr(documents, name))
    columns = {name: encode_json(column) for name, column in documents.metadata.items()}
    values["metadata/{column}/bytes"] = {name: data for name, (data, _) in columns.items()}
    values["metadata/{column}/offsets"] = {name: offsets for name, (_, offsets) in columns.items()}
    values["objectives/{column}"] = documents.objectives
    values["num_counted"] = tokens.per_document()
    for name in ("row", "num_tokens", "status"):
        values[name] = getattr(documents, name)
    return values


def _rounded(scores: SparseScores, precision_bits: int) -> SparseScores:
    return SparseScores(
        indptr=np.ascontiguousarray(scores.indptr, np.int64),
        indices=np.ascontiguousarray(scores.indices, np.int32),
        activation=round_significand(scores.activation, precision_bits),
        projections={name: round_significand(values, precision_bits) for name, values in scores.projections.items()},
        num_latents=scores.num_latents,
    )


def _site_arrays(group: str, scores: SparseScores, tokens: CountedTokens) -> Placed:
    """Yield the arrays of one site; sums are of the rounded values, so a reader finds the same ones."""
    width = scores.num_latents
    by_token: Values = {
        "indptr": scores.indptr,
        "indices": scores.indices,
        "activation": scores.activation,
        "projection/{objective}": scores.projections,
    }
    yield from _typed(f"{group}/by_token", BY_TOKEN, by_token, width)
    index = invert(scores.indptr, scores.indices, width)
    by_latent: Values = {
        "indptr": index.indptr,
        "token_gap": index.token_gap,
        "activation": scores.activation[index.order],
        "projection/{objective}": {name: values[index.order] for name, values in scores.projections.items()},
    }
    yield from _typed(f"{group}/by_latent", BY_LATENT, by_latent, width)
    yield from _sum_arrays(group, scores, tokens, None)
    if np.any(scores.activation < 0):
        for polarity in POLARITIES:
            yield from _sum_arrays(group, one_side(scores, polarity), tokens, polarity)


def _sum_arrays(group: str, scores: SparseScores, tokens: CountedTokens, polarity: str | None) -> Placed:
    """Yield the sums of a site, or, given the scores of one side, of that side."""
    width, influence = scores.num_latents, _influences(scores)
    pairs = find_pairs(tokens, scores.indptr, scores.indices, width)
    pair_values = _pair_values(pairs, tokens, scores, influence, polarity)
    latent_values = _latent_values(tokens.counted, scores, influence, polarity)
    yield from _typed(*of_side(f"{group}/documents", DOCUMENT_SUMS, polarity), pair_values, width)
    yield from _typed(*of_side(f"{group}/latents", LATENT_STATS, polarity), latent_values, width)


def _influences(scores: SparseScores) -> dict[str, Array]:
    with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN show in the sums, as they will for readers
        return {name: scores.activation * values for name, values in scores.projections.items()}


def _pair_values(
    pairs: Pairs, tokens: CountedTokens, scores: SparseScores, influence: Mapping[str, Array], polarity: str | None
) -> Values:
    def summed(values: Array) -> Any:
        return sum_pairs(pairs, tokens, scores.indptr, scores.indices, values, scores.num_latents)

    activation = summed(turned(scores.activation, polarity))
    sums = {name: summed(values) for name, values in influence.items()}
    return {
        "indptr": pairs.indptr,
        "indices": pairs.indices,
        "count": activation.entries,
        "sum_activation": turned(activation.total, polarity),
        "max_activation": turned(activation.maximum, polarity),
        "sum_influence/{objective}": {name: part.total for name, part in sums.items()},
        "sum_positive/{objective}": {name: part.positive for name, part in sums.items()},
        "sum_absolute/{objective}": {name: part.absolute for name, part in sums.items()},
        "max_influence/{objective}": {name: part.maximum for name, part in sums.items()},
    }


def _latent_values(
    counted: Array, scores: SparseScores, influence: Mapping[str, Array], polarity: str | None
) -> Values:
    def summed(values: Array) -> Any:
        return sum_latents(counted, scores.indptr, scores.indices, values, scores.num_latents)

    activation = summed(turned(scores.activation, polarity))
    sums = {name: summed(values) for name, values in influence.items()}
    return {
        "count": activation.entries,
        "count_positive": activation.positive_entries,
        "count_negative": activation.negative_entries,
        "sum_activation": turned(activation.total, polarity),
        "max_activation": turned(activation.maximum, polarity),
        "sum_influence/{objective}": {name: part.total for name, part in sums.items()},
        "sum_absolute/{objective}": {name: part.absolute for name, part in sums.items()},
        "max_absolute/{objective}": {name: part.max_absolute for name, part in sums.items()},
    }
