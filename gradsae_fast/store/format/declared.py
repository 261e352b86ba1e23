"""What an array of a segment must be, by its path: the dtype and length that `layout` declares and the record counts.

A reader that has checked this can join arrays: rows of one are rows of the other, and borders are whole numbers.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from gradsae_fast.store.format.claims import LONGEST_STRINGS
from gradsae_fast.store.format.layout import (
    BY_LATENT,
    BY_TOKEN,
    DOCUMENT_SUMS,
    DOCUMENTS,
    LATENT,
    LATENT_STATS,
    TOKENS,
    ArraySpec,
    latent_dtype,
    of_side,
)
from gradsae_fast.store.format.polarity import POLARITIES

_EDGE = "_edge"


def declared(path: str) -> ArraySpec:
    """Return the declaration of an array, by its path below the segment, of a site's below the site.

    Raises:
        KeyError: no such array is declared.
    """
    specs = _specs()
    if path in specs:
        return specs[path]
    folder, _, last = path.rpartition("/")
    return specs[f"{folder}/*"] if f"{folder}/*" in specs else specs[f"{folder.rpartition('/')[0]}/*/{last}"]


def mismatch(spec: ArraySpec, dtype: np.dtype[Any], length: int, sizes: Mapping[str, int]) -> str | None:
    """Return what an array has that it should not, or None.

    Args:
        spec: its declaration.
        dtype, length: what it has.
        sizes: lengths of dimensions as far as they are known: `token`, `document`, `latent`, `nonzero`.
    """
    expected = latent_dtype(sizes["latent"]) if spec.dtype == LATENT else np.dtype(spec.dtype)
    if dtype != expected:
        return f"it holds numbers of type {dtype.name}; expected {expected.name}"
    name = spec.dims[0]
    size = sizes.get(name.removesuffix(_EDGE))
    if size is not None and length != size + name.endswith(_EDGE):
        return f"it has {length} elements; expected {size + name.endswith(_EDGE)}, as its commit record counts"
    most = {"pair": sizes.get("nonzero"), "byte": LONGEST_STRINGS}.get(name)
    if most is not None and length > most:
        return f"it has {length} elements; expected at most {most}"
    return None


@cache
def _specs() -> dict[str, ArraySpec]:
    """Declarations by path, `*` in the place of a name; paths below a segment and below a site do not overlap."""
    sums = [of_side("documents", DOCUMENT_SUMS, polarity) for polarity in (None, *POLARITIES)]
    stats = [of_side("latents", LATENT_STATS, polarity) for polarity in (None, *POLARITIES)]
    groups = [("tokens", TOKENS), ("documents", DOCUMENTS), ("by_token", BY_TOKEN), ("by_latent", BY_LATENT)]
    return {f"{group}/{_starred(spec.name)}": spec for group, specs in (*groups, *sums, *stats) for spec in specs}


def _starred(name: str) -> str:
    before, brace, rest = name.partition("{")
    return f"{before}*{rest.partition('}')[2]}" if brace else name
