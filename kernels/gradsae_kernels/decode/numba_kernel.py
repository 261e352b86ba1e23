"""Compiled loop of `decode` on the CPU; letters: N tokens, D model width, C latents."""

from typing import Any

import numpy.typing as npt

from gradsae_kernels.compiled import compiled

Array = npt.NDArray[Any]


@compiled()
def add_rows(
    start: int, stop: int, indptr: Array, indices: Array, values: Array, w_CD: Array, decoded_ND: Array
) -> None:
    """Add value * decoder row to rows start:stop, latent after latent; two at a time only saves passes over the sum."""
    for n in range(start, stop):
        total, pair, end = decoded_ND[n], indptr[n], indptr[n + 1]
        while pair + 1 < end:
            one, two = w_CD[indices[pair]], w_CD[indices[pair + 1]]
            a, b = values[pair], values[pair + 1]
            for d in range(total.shape[0]):
                total[d] = (total[d] + a * one[d]) + b * two[d]
            pair += 2
        if pair < end:
            one, a = w_CD[indices[pair]], values[pair]
            for d in range(total.shape[0]):
                total[d] += a * one[d]
