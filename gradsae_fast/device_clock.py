"""The clock of a GPU, for `stages`: when its stream came to what the host had launched."""

import torch


class CudaClock:
    """Events on the current stream of a CUDA device; its zero is when it was made."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._stream.synchronize()
        self._zero = self.mark()

    def mark(self) -> torch.cuda.Event:
        """An event behind all work that was launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Between two events; waits until the stream has reached the last one."""
        last.synchronize()
        return 1e-3 * first.elapsed_time(last)

    def moment(self, mark: torch.cuda.Event) -> float:
        """Seconds from zero to an event, in float32: after an hour a quarter of a millisecond is lost."""
        return self.seconds(self._zero, mark)


def clock_of(device: torch.device) -> CudaClock | None:
    """The clock of a device; None for a CPU, which is done when a call returns."""
    return CudaClock(device) if device.type == "cuda" else None
