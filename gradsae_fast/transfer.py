"""Copies between host and device that nobody waits for before the values are needed.

On a GPU they go through pinned memory, in the order of the stream; on a CPU there is nothing to copy.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradsae_fast.records import Array


def to_device(array: Array, device: torch.device | str) -> Tensor:
    """The array as a tensor on a device; what is launched there next finds it filled."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Array]]:
    """Begin to copy tensors of one device to the host; calling the result waits for them and gives them as arrays.

    The arrays are the caller's own: a call returns the pinned memory, of which there is little.
    """
    device = next(iter(tensors.values())).device
    if device.type != "cuda":
        return lambda: {name: tensor.numpy() for name, tensor in tensors.items()}
    pinned = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(device))

    def arrive() -> dict[str, Array]:
        copied.synchronize()
        return {name: tensor.numpy().copy() for name, tensor in pinned.items()}

    return arrive
