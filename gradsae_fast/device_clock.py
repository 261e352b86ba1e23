"""The clock of a GPU, for `stages`: when its stream came to what the host had launched."""

import torch


class CudaClock:
    """Events on the current stream of CUDA; its zero is when it was made."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._zero = self.mark()

    def mark(self) -> torch.cuda.Event:
        """An event behind all work that was launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def moment(self, mark: torch.cuda.Event) -> float:
        """Seconds from zero until the stream reached the event; waits until it has."""
        mark.synchronize()
        return 1e-3 * self._zero.elapsed_time(mark)


def clock_of(device: torch.device) -> CudaClock | None:
    """The clock of a device; None for a CPU, which is done when a call returns."""
    return CudaClock() if device.type == "cuda" else None
