"""The oracle of `project`: the dense gradient of every latent, then the active ones.

Letters: N tokens, D model width, C latents.
"""

from torch import Tensor

from gradsae_kernels.sparse_rows import SparseRows, row_of_entry


def project_reference(rows: SparseRows, grad_ND: Tensor, w_dec_CD: Tensor) -> Tensor:
    """float32 [nnz], picked out of grad @ w_dec.T."""
    gradient_NC = grad_ND.float() @ w_dec_CD.float().T
    return gradient_NC[row_of_entry(rows), rows.indices.long()]
