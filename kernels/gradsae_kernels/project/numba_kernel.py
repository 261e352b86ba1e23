"""Compiled loop of `project` on the CPU; letters: N tokens, D model width, C latents."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gradsae_kernels.compiled import compiled

Array = npt.NDArray[Any]


@compiled(fastmath={"reassoc", "contract"})
def project_rows(
    start: int, stop: int, indptr: Array, indices: Array, grad_ND: Array, w_CD: Array, projections: Array
) -> None:
    """Inner products of rows start:stop with their decoder rows, each summed in vector lanes in one fixed order."""
    for n in range(start, stop):
        grad = grad_ND[n]
        for pair in range(indptr[n], indptr[n + 1]):
            row = w_CD[indices[pair]]
            total = np.float32(0)
            for d in range(grad.shape[0]):
                total += grad[d] * row[d]
            projections[pair] = total
