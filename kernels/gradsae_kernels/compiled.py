"""Numba, where it is: compiled loops that release the GIL, and one answer to "can they be used here"."""

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)


@cache
def numba_is_usable() -> bool:
    """Whether numba can be imported; the first "no" is logged, because everything on the CPU is slower then."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        logger.warning("numba cannot be imported (%s): gradsae_kernels runs plain torch, several times slower", error)
        return False
    return True


def runs_compiled(device: torch.device) -> bool:
    """Whether the tiled backend uses its compiled loops on this device."""
    return device.type == "cpu" and numba_is_usable()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a loop at its first call, without the GIL, and keep the machine code on disk where that is possible.

    `parallel=True` is left alone on purpose: numba's thread layer is one per process, aborts under concurrent callers
    (workqueue) or after a fork (OpenMP), and takes longer to compile. `threads.py` splits rows instead.
    """
    numba = importlib.import_module("numba")

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:  # numba found no folder that it may write to
            logger.info("no cache for compiled loops: %s", error)
            return numba.njit(nogil=True, **options)(function)

    return decorate
