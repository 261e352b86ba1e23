"""What a call will run, in words that are fit to be recorded beside its results."""

import torch

from gradsae_kernels.backend import Backend, choose_backend
from gradsae_kernels.compiled import runs_compiled
from gradsae_kernels.emit.plan import capability_of, choose_plan
from gradsae_kernels.encode_topk.fused import sampling_for


def kernel_configuration(
    device: torch.device,
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    width: int,
    num_latents: int,
    *,
    k: int | None = None,
) -> str:
    """The backend that AUTO takes on this device, and the plan or the loops that decide over the last bits.

    For encoders of D = width and C = num_latents, and of this k for `encode_topk`. Raises BackendUnavailable.

    >>> kernel_configuration(torch.device("cuda"), torch.float32, torch.float32, 576, 4096)  # doctest: +SKIP
    'triton append+screen 128x128x64 w4 s3'
    """
    backend = choose_backend(device, Backend.AUTO)
    if backend is not Backend.TRITON:
        return f"{backend} {'numba' if runs_compiled(device) else 'torch'}"
    if k is not None and sampling_for(k, num_latents, width) is None:
        return f"{backend} without a sample: {Backend.TILED} torch"
    plan = choose_plan(capability_of(device), x_dtype, w_dtype, width, num_latents, by_rank=k is not None)
    return f"{backend} {plan}"
