"""The inverted index of a segment: from "latents of a token" to "tokens of a latent", by counting sort.

N tokens, C latents, Z non-zeros. Latent ids are small integers and a segment fits in memory, so two passes over the
non-zeros do what a database needs a sort for.
"""

from dataclasses import dataclass

import numba
import numpy as np

from gradsae_fast.store.format.layout import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InvertedIndex:
    """Non-zeros grouped by latent, tokens ascending inside a latent."""

    indptr: Array  # int64 [C+1]
    token_gap: Array  # uint32 [Z]: the latent's first token, then steps to the next one
    order: Array  # int64 [Z]: where each entry lies in token order


def invert(indptr: Array, indices: Array, num_latents: int) -> InvertedIndex:
    """Group the non-zeros of a CSR matrix by column.

    Args:
        indptr: int64 [N+1].
        indices: integer [Z], each in [0, num_latents).
        num_latents: C.
    """
    latent_edges = np.zeros(num_latents + 1, np.int64)
    np.cumsum(np.bincount(indices, minlength=num_latents), out=latent_edges[1:])
    token_gap = np.empty(len(indices), np.uint32)
    order = np.empty(len(indices), np.int64)
    last = np.zeros(num_latents, np.int64)
    _distribute(indptr, indices, latent_edges[:-1].copy(), last, token_gap, order)
    return InvertedIndex(indptr=latent_edges, token_gap=token_gap, order=order)


def tokens_of_gaps(token_gap: Array) -> Array:
    """Return the token positions int64 of one latent from its stored gaps."""
    return np.cumsum(token_gap, dtype=np.int64)


@numba.njit(nogil=True, cache=True)
def _distribute(indptr: Array, indices: Array, heads: Array, last: Array, token_gap: Array, order: Array) -> None:
    """Send every non-zero to its latent's next free slot; `last` starts at 0, so the first gap is the token itself."""
    for n in range(len(indptr) - 1):
        for z in range(indptr[n], indptr[n + 1]):
            c = np.int64(indices[z])
            slot = heads[c]
            heads[c] = slot + 1
            token_gap[slot] = n - last[c]
            last[c] = n
            order[slot] = z
