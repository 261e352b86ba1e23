"""Which implementation runs: one pure function of the device and the request, asked once per call."""

from enum import StrEnum

import torch

TILED_DEVICES = frozenset({"cpu", "cuda"})


class Backend(StrEnum):
    """AUTO takes the fastest one the device has; a named one is taken or refused, never replaced."""

    AUTO = "auto"
    REFERENCE = "reference"  # the oracle: dense, obvious, fp32
    TILED = "tiled"  # tiles of a matrix product, compacted while they are in cache


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run on this device."""


def choose_backend(device: torch.device, requested: Backend) -> Backend:
    """The backend that a call with this request runs on this device.

    Raises BackendUnavailable where there is none. The same arguments always give the same answer, so that a caller
    can record it.

    >>> choose_backend(torch.device("cpu"), Backend.AUTO)
    <Backend.TILED: 'tiled'>
    """
    chosen = Backend.TILED if requested is Backend.AUTO else Backend(requested)
    if device.type == "meta" or (chosen is Backend.TILED and device.type not in TILED_DEVICES):
        raise BackendUnavailable(
            f"backend {chosen} on device {device.type!r}: it runs on {', '.join(sorted(TILED_DEVICES))}; "
            f"move the tensors there, or ask for {Backend.REFERENCE} on any device that holds data"
        )
    return chosen
