"""The oracle of `decode`: the dense activations times the decoder.

Letters: N tokens, D model width, C latents.
"""

import torch
from torch import Tensor

from gradsae_kernels.sparse_rows import SparseRows, row_of_entry


def decode_reference(rows: SparseRows, w_dec_CD: Tensor, bias_D: Tensor | None) -> Tensor:
    """float32 [N, D] = a @ w_dec + bias."""
    a_NC = torch.zeros(len(rows.indptr) - 1, len(w_dec_CD), device=w_dec_CD.device)
    a_NC[row_of_entry(rows), rows.indices.long()] = rows.values
    decoded_ND = a_NC @ w_dec_CD.float()
    return decoded_ND if bias_D is None else decoded_ND + bias_D
