"""Every array that a store holds, declared once, and how names become path components.

Dimensions: token N, document M, latent C, dense K (latents that fire nearly everywhere), document_dense M·K, nonzero Z
(active latents over the tokens of a segment), pair R (a document and a latent that is active in it), latent_token C·T
and latent_neighbour C·K (what decoder rows say), byte and string of a text column. An `_edge` dimension has one entry
more: it holds the borders of rows. `FORMAT.md` says it in prose.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from gradsae_fast.errors import StoreError

Array = npt.NDArray[Any]

FORMAT_VERSION = 1  # of commit records and Zarr groups
RUN_VERSION = 2  # of `run.json` and what came with it: generations and revisions
RUN_VERSIONS = (1, RUN_VERSION)  # that this release reads
SEGMENT_FORMAT = "gradsae.segment"
STORE_FORMAT = "gradsae.scores"
GENERATION_FORMAT = "gradsae.generation"
EXACT_FORMAT = "gradsae.exact"
DESCRIBED_FORMAT = "gradsae.described"

LATENT = "latent id"  # dtype of latent ids: uint16 where C ≤ 65,536, else uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One on-disk array: where it lies below its group, what it holds. `{…}` in a name is filled with one name each."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    meaning: str


def _array(name: str, dtype: str, dim: str, meaning: str) -> ArraySpec:
    return ArraySpec(name=name, dtype=dtype, dims=(dim,), meaning=meaning)


def _strings(name: str, dim: str, meaning: str) -> tuple[ArraySpec, ArraySpec]:
    return (
        _array(f"{name}/bytes", "uint8", "byte", f"{meaning}; UTF-8, end to end, lone surrogates as three bytes each"),
        _array(f"{name}/offsets", "int64", f"{dim}_edge", "entry i is bytes[offsets[i]:offsets[i+1]]"),
    )


TOKENS = (
    _array("token_id", "uint32", "token", "vocabulary id"),
    _array("document", "uint32", "token", "position of the token's document in this segment; ascending"),
    _array("position", "uint32", "token", "position of the token in its document"),
    _array("context", "uint32", "token", "tokens of left context that the model saw"),
    _array("char_start", "uint32", "token", "first character of the token in the document's text"),
    _array("char_end", "uint32", "token", "one past the last character of the token"),
    _array("mask", "uint8", "token", "why aggregates leave the token out; bits of TokenMask; 0: it counts"),
)

DOCUMENTS = (
    *_strings("key", "document", "the document's id"),
    *_strings("source", "document", "where the document was read from"),
    _array("row", "int64", "document", "row in its source"),
    _array("num_tokens", "uint32", "document", "scored tokens"),
    _array("num_counted", "uint32", "document", "scored tokens that count in aggregates"),
    _array("status", "uint8", "document", "bits 1 empty, 2 quarantined; 0 scored"),
    *_strings("text", "document", "the document's text"),
    *_strings("metadata/{column}", "document", "one JSON value per document"),
    _array("objectives/{column}", "float64", "document", "value of an objective for the document"),
)

BY_TOKEN = (
    _array("indptr", "int64", "token_edge", "non-zeros of token n are entries indptr[n] to indptr[n+1]"),
    _array("indices", LATENT, "nonzero", "latent id, ascending inside a token"),
    _array("activation", "float32", "nonzero", "activation, rounded"),
    _array("projection/{objective}", "float32", "nonzero", "⟨gradient, effective decoder row⟩, rounded"),
)

BY_LATENT = (
    _array("indptr", "int64", "latent_edge", "non-zeros of latent c are entries indptr[c] to indptr[c+1]"),
    _array("token_gap", "uint32", "nonzero", "token of the latent's first non-zero, then steps to the next token"),
    _array("activation", "float32", "nonzero", "activation, rounded: the values of by_token in another order"),
    _array("projection/{objective}", "float32", "nonzero", "projection, rounded: the values of by_token reordered"),
)

DOCUMENT_SUMS = (
    _array("indptr", "int64", "document_edge", "pairs of document m are entries indptr[m] to indptr[m+1]"),
    _array("indices", LATENT, "pair", "latent id, ascending inside a document"),
    _array("count", "uint32", "pair", "counted tokens of the document on which the latent is active"),
    _array("sum_activation", "float32", "pair", "Σ a"),
    _array("max_activation", "float32", "pair", "max a"),
    _array("sum_influence/{objective}", "float32", "pair", "Σ g, g = activation · projection"),
    _array("sum_positive/{objective}", "float32", "pair", "Σ max(g, 0)"),
    _array("sum_absolute/{objective}", "float32", "pair", "Σ |g|"),
    _array("max_influence/{objective}", "float32", "pair", "max g"),
)

LATENT_STATS = (
    _array("count", "uint32", "latent", "counted tokens on which the latent is active"),
    _array("count_positive", "uint32", "latent", "of these, tokens with a > 0"),
    _array("count_negative", "uint32", "latent", "of these, tokens with a < 0 (signed SAEs)"),
    _array("sum_activation", "float64", "latent", "Σ a"),
    _array("max_activation", "float32", "latent", "max a; 0 where count is 0"),
    _array("sum_influence/{objective}", "float64", "latent", "Σ g, g = activation · projection"),
    _array("sum_absolute/{objective}", "float64", "latent", "Σ |g|"),
    _array("max_absolute/{objective}", "float32", "latent", "max |g|; 0 where count is 0"),
)

_COUNTS_BY_SIGN = ("count_positive", "count_negative")

EXACT = (
    _array("latents", LATENT, "dense", "id of a dense latent, ascending"),
    _array(
        "drop/{objective}",
        "float32",
        "document_dense",
        "exact m - m(without the latent) of each document and dense latent, documents one after the other",
    ),
)

DICTIONARY_TOKENS = _strings("tokens", "token_id", "string of each vocabulary id")
DICTIONARY_SITE = (_array("decoder_norm", "float32", "latent", "Euclidean norm of the decoder row"),)

_EFFECT = "logits above the vocabulary's mean, of the token at the same place in"
DESCRIBED = (
    _array("promoted", "uint32", "latent_token", "vocabulary ids, T a latent, most promoted first"),
    _array("promoted_effect", "float32", "latent_token", f"{_EFFECT} promoted"),
    _array("suppressed", "uint32", "latent_token", "vocabulary ids, T a latent, most suppressed first"),
    _array("suppressed_effect", "float32", "latent_token", f"{_EFFECT} suppressed"),
    _array("neighbours", "uint32", "latent_neighbour", "latents, K a latent, largest cosine of decoder rows first"),
    _array("cosine", "float32", "latent_neighbour", "cosine of the two decoder rows"),
)


def of_side(group: str, specs: tuple[ArraySpec, ...], polarity: str | None) -> tuple[str, tuple[ArraySpec, ...]]:
    """Return where one side's sums lie and what they are, given those of both sides together (`polarity` None).

    A side has no counts by sign, and the strongest activation of the negative one is its most negative.
    """
    if polarity is None:
        return group, specs
    side = "a > 0" if polarity == "positive" else "a < 0"
    strongest = "max a" if polarity == "positive" else "min a, the most negative"
    return f"{group}/{polarity}", tuple(
        replace(spec, meaning=f"{spec.meaning.replace('max a', strongest)}; of tokens with {side}")
        for spec in specs
        if spec.name not in _COUNTS_BY_SIGN
    )


def latent_dtype(num_latents: int) -> np.dtype[Any]:
    """Return the on-disk dtype of latent ids: uint16 up to 65,536 latents, else uint32."""
    return np.dtype("uint16" if num_latents <= 1 << 16 else "uint32")


def component(name: str) -> str:
    """Write any name as one path component; `name_of` reads it back.

    Kept as they are: a-z, 0-9, `_`, `-`, `.`. Every other byte of the UTF-8 form becomes %XX (upper case too, for disks
    that do not tell cases apart), and so does a first character that would make a hidden or reserved name.

    Raises:
        StoreError: the name is empty, or longer on disk than file systems take (255 bytes).
    """
    escaped = "".join(quote(c, safe="", errors="surrogatepass") if not c.isupper() else _escape(c) for c in name)
    escaped = escaped.replace("~", "%7E")
    if escaped.startswith((".", "__")) or escaped == "zarr.json":
        escaped = _escape(escaped[0]) + escaped[1:]
    if not 0 < len(escaped) <= 255:
        raise StoreError(
            f"the name {name!r} takes {len(escaped)} bytes as a folder name; expected 1 to 255: rename the site, "
            "objective or metadata column"
        )
    return escaped


def check_names(names: Iterable[str]) -> None:
    """Refuse names that cannot be written as path components: before hours of scoring, not after.

    Raises:
        StoreError: one is empty, or longer on disk than file systems take.
    """
    for name in names:
        component(name)


def _escape(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def name_of(component: str) -> str:
    """Read back a name written by `component`."""
    return unquote(component, errors="surrogatepass")


def place(
    group: str, specs: tuple[ArraySpec, ...], values: Mapping[str, Array | Mapping[str, Array]]
) -> Iterator[tuple[str, ArraySpec, Array]]:
    """Yield (path in the segment, spec, array) of every array of a group.

    `values` has one entry per spec: the array, or, where the spec's name has a `{…}`, one array per name.
    """
    for spec in specs:
        value = values[spec.name]
        if isinstance(value, Mapping):
            for name, array in value.items():
                yield f"{group}/{path_of(spec.name, name)}", spec, array
        else:
            yield f"{group}/{spec.name}", spec, value


def path_of(template: str, name: str) -> str:
    """Fill the `{…}` of a spec's name."""
    before, _, rest = template.partition("{")
    return before + component(name) + rest.partition("}")[2]
