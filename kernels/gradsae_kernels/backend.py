"""Which implementation runs: one function of the device and the request, asked once per call."""

from enum import StrEnum

import torch

from gradsae_kernels.launches import announce_tiled, runs_triton

TILED_DEVICES = frozenset({"cpu", "cuda"})


class Backend(StrEnum):
    """AUTO takes the fastest one the device has; a named one is taken or refused, never replaced."""

    AUTO = "auto"
    REFERENCE = "reference"  # the oracle: dense, obvious, fp32
    TILED = "tiled"  # tiles of a matrix product, compacted while they are in cache
    TRITON = "triton"  # fused kernels on a GPU


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run on this device."""


def choose_backend(device: torch.device, requested: Backend) -> Backend:
    """The backend that a call with this request runs on this device.

    Raises BackendUnavailable where there is none. The same arguments always give the same answer in one installation,
    so that a caller can record it. AUTO on a GPU without Triton is TILED, and says so once through `logging`.

    >>> choose_backend(torch.device("cpu"), Backend.AUTO)
    <Backend.TILED: 'tiled'>
    """
    chosen = _fastest(device) if requested is Backend.AUTO else Backend(requested)
    if chosen is Backend.TRITON and not runs_triton(device):
        raise BackendUnavailable(
            f"backend {chosen} on device {device.type!r}: it needs the package triton and a CUDA device of compute "
            f"capability 8.0 or newer; install gradsae-fast[triton], or ask for {Backend.TILED}"
        )
    if device.type == "meta" or (chosen is Backend.TILED and device.type not in TILED_DEVICES):
        raise BackendUnavailable(
            f"backend {chosen} on device {device.type!r}: it runs on {', '.join(sorted(TILED_DEVICES))}; "
            f"move the tensors there, or ask for {Backend.REFERENCE} on any device that holds data"
        )
    return chosen


def _fastest(device: torch.device) -> Backend:
    if device.type != "cuda":
        return Backend.TILED
    if runs_triton(device):
        return Backend.TRITON
    announce_tiled(device.type)
    return Backend.TILED
