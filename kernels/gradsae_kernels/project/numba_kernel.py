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

    Eight pairs go together: the decoder rows come from far, and eight streams keep the memory busier than one.
    """
    for n in range(start, stop):
        grad = grad_ND[n]
        pair = indptr[n]
        while pair + 8 <= indptr[n + 1]:
            row_0, row_1 = w_CD[indices[pair]], w_CD[indices[pair + 1]]
            row_2, row_3 = w_CD[indices[pair + 2]], w_CD[indices[pair + 3]]
            row_4, row_5 = w_CD[indices[pair + 4]], w_CD[indices[pair + 5]]
            row_6, row_7 = w_CD[indices[pair + 6]], w_CD[indices[pair + 7]]
            sum_0 = sum_1 = sum_2 = sum_3 = sum_4 = sum_5 = sum_6 = sum_7 = np.float32(0)
            for d in range(grad.shape[0]):
                g = grad[d]
                sum_0 += g * row_0[d]
                sum_1 += g * row_1[d]
                sum_2 += g * row_2[d]
                sum_3 += g * row_3[d]
                sum_4 += g * row_4[d]
                sum_5 += g * row_5[d]
                sum_6 += g * row_6[d]
                sum_7 += g * row_7[d]
            projections[pair], projections[pair + 1] = sum_0, sum_1
            projections[pair + 2], projections[pair + 3] = sum_2, sum_3
            projections[pair + 4], projections[pair + 5] = sum_4, sum_5
            projections[pair + 6], projections[pair + 7] = sum_6, sum_7
            pair += 8
        while pair < indptr[n + 1]:
            row = w_CD[indices[pair]]
            total = np.float32(0)
            for d in range(grad.shape[0]):
                total += grad[d] * row[d]
            projections[pair] = total
            pair += 1
