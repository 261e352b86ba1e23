"""The ways through the operators that read decoder rows, and rows to send down them.

Letters: N tokens, C latents.
"""

import pytest
import torch

from gradsae_kernels import Backend, SparseRows
from gradsae_kernels.launches import runs_triton

every_path = pytest.mark.parametrize(
    "path",
    ["compiled", "plain torch", "triton", pytest.param("triton on cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
same_bits_path = pytest.mark.parametrize(
    "path", ["compiled", "triton", pytest.param("triton on cuda", marks=pytest.mark.gpu)], indirect=True
)


def backend_of(path: str) -> tuple[Backend, str]:
    """The backend of a path, and the device of its tensors."""
    if not path.startswith("triton"):
        return Backend.TILED, "cpu"
    device = "cuda" if path.endswith("cuda") else "cpu"
    if not runs_triton(torch.device(device)):
        pytest.skip(f"Triton does not run on {device} here")
    return Backend.TRITON, device


def moved(rows: SparseRows, device: str) -> SparseRows:
    return SparseRows(*(part.to(device) for part in rows))


def ragged_rows(num_rows: int, num_latents: int) -> SparseRows:
    """Rows of very different length: empty ones, one with every latent, the rest in between."""
    generator = torch.Generator().manual_seed(11)
    share_N1 = torch.rand(num_rows, 1, generator=generator) ** 4
    active_NC = torch.rand(num_rows, num_latents, generator=generator) < share_N1
    active_NC[:: max(2, num_rows // 3)] = False
    active_NC[-1:] = True
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), active_NC.sum(dim=1).cumsum(dim=0)])
    indices = active_NC.nonzero()[:, 1].to(torch.int32)
    return SparseRows(indptr, indices, torch.randn(len(indices), generator=generator))
