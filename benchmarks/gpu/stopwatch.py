"""Milliseconds of a call: events on a GPU with a cold second cache, the wall clock on a CPU."""

import time
from collections.abc import Callable
from typing import Any

import torch

FLUSH_BYTES = 2**28  # several times the second cache of any GPU of today


class Stopwatch:
    """Times calls on one device. On a GPU a call begins when the device is idle, so that no call hides another's host
    work, and its end is an event: what is read is device time, waiting for the host included.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if self._is_cuda else None

    def time(self, call: Callable[[], Any]) -> Callable[[], float]:
        """Run it; the function that is returned waits for its end and gives milliseconds."""
        if self._flush is None:
            begin = time.perf_counter()
            call()
            elapsed = 1e3 * (time.perf_counter() - begin)
            return lambda: elapsed
        torch.cuda.synchronize()
        self._flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()

        def read() -> float:
            stop.synchronize()
            return float(start.elapsed_time(stop))

        return read

    def turns(self, calls: dict[str, Callable[[], Any]], count: int, *, primed: bool = False) -> dict[str, list[float]]:
        """Every call once per turn, every second turn in the opposite order, so that drift and neighbours hit all.

        `primed` puts an untimed call before each timed one.
        """
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(count):
            names = list(calls)[:: -1 if turn % 2 else 1]
            running = {}
            for name in names:
                if primed:
                    calls[name]()
                running[name] = self.time(calls[name])
            for name, read in running.items():
                times[name].append(read())
        return times

    def peak_bytes(self, call: Callable[[], Any]) -> tuple[Any, int | None]:
        """The answer, and how far the call raised torch's allocated memory; None on a CPU, where it is not counted."""
        if not self._is_cuda:
            return call(), None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer = call()
        torch.cuda.synchronize()
        return answer, torch.cuda.max_memory_allocated() - before


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies, straight lines between neighbours."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
