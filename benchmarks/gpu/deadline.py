"""A clock that runs down: what no longer fits is left out and said, instead of being cut off by somebody else."""

import time
from collections.abc import Callable


class Deadline:
    """Seconds that are left of a budget, from the moment that this is made.

    >>> Deadline(540, clock=lambda: 0.0).fits(600)
    False
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self._end - self._clock())

    def fits(self, seconds: float) -> bool:
        """Whether something of this length still ends in time."""
        return seconds <= self.left()
