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
    """Inner products of rows start:stop with their decoder rows, each summed in vector lanes in one fixed order.

    Four pairs go together: the decoder rows come from far, and four streams keep the memory busier than one.
    """
    for n in range(start, stop):
        grad = grad_ND[n]
        pair = indptr[n]
        while pair + 4 <= indptr[n + 1]:
            row_0, row_1 = w_CD[indices[pair]], w_CD[indices[pair + 1]]
            row_2, row_3 = w_CD[indices[pair + 2]], w_CD[indices[pair + 3]]
            total_0, total_1, total_2, total_3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for d in range(grad.shape[0]):
                total_0 += grad[d] * row_0[d]
                total_1 += grad[d] * row_1[d]
                total_2 += grad[d] * row_2[d]
                total_3 += grad[d] * row_3[d]
            projections[pair], projections[pair + 1] = total_0, total_1
            projections[pair + 2], projections[pair + 3] = total_2, total_3
            pair += 4
        while pair < indptr[n + 1]:
            row = w_CD[indices[pair]]
            total = np.float32(0)
            for d in range(grad.shape[0]):
                total += grad[d] * row[d]
            projections[pair] = total
            pair += 1
