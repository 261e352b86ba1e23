"""Triton, where it is: one answer to "can it be used here", and a count of the kernels that were launched."""

import importlib
import logging
import os
from collections import Counter
from functools import cache

import torch

logger = logging.getLogger(__name__)

LAUNCHES: Counter[str] = Counter()  # kernel and variant -> launches in this process; tests read it, nothing else does

OLDEST_CAPABILITY = (8, 0)


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors; it reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def runs_triton(device: torch.device) -> bool:
    """Whether the Triton kernels run on this device: a CUDA device from Ampere on, or the CPU in the interpreter."""
    if device.type == "cpu":
        return interpreting() and why_no_triton() == ""
    if device.type != "cuda" or why_no_triton() or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


@cache
def why_no_triton() -> str:
    """Empty where a Triton that is new enough can be imported, else the reason."""
    try:
        importlib.import_module("triton")
        importlib.import_module("triton.tools.tensor_descriptor")
    except ImportError as error:
        return str(error)
    return ""


@cache
def announce_tiled(device_type: str) -> None:
    """Say once that a GPU runs the portable path, and why."""
    logger.warning(
        "gradsae_kernels runs plain torch on %s, slower than its Triton kernels: %s",
        device_type,
        why_no_triton() or "they need compute capability 8.0 or newer",
    )
