"""Workers that something happens to; each what `Scorer` is, and named on the command line of `drive`.

What is to happen once leaves a file beside the store.
"""

import time
from pathlib import Path

from gradsae_fast.engine.actor import Scorer, Summary

_SECONDS = 1.0  # of each task besides its work, so that there is time to do harm
_LOST = "CUDA error: device-side assert triggered"  # what PyTorch says from then on, whatever is asked of that GPU


def happens_first(scorer: Scorer) -> bool:
    """Whether this is the first time that it happens, over all workers of a trial."""
    store = Path(scorer.begun.prepared.config.store.path)
    try:
        store.with_name(f"{store.name}.happened").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Slow(Scorer):
    """Takes its time."""

    def score(self, segments: frozenset[int]) -> Summary:
        """Score, and wait."""
        summary = super().score(segments)
        time.sleep(_SECONDS)
        return summary


class FailsOnce(Slow):
    """Its first task fails once by an error that nobody foresaw."""

    def score(self, segments: frozenset[int]) -> Summary:
        """Fail, or score."""
        if happens_first(self):
            raise ZeroDivisionError("a mistake in a kernel")
        return super().score(segments)


class FailsAlways(Slow):
    """A segment in the middle of the plan fails whoever scores it."""

    def score(self, segments: frozenset[int]) -> Summary:
        """Fail, or score."""
        if len(self.begun.all_segments) // 2 in segments:
            raise ZeroDivisionError("a mistake in a kernel")
        return super().score(segments)


class LosesGpu(Slow):
    """One worker's GPU is lost in the middle of the run: whatever the process does with it fails from then on."""

    def score(self, segments: frozenset[int]) -> Summary:
        """Fail as PyTorch does, or score."""
        if len(self.begun.writer.refresh()) > 1 and happens_first(self):
            raise RuntimeError(_LOST)
        return super().score(segments)


class Hangs(Slow):
    """Never comes back from a segment in the middle of the plan."""

    def score(self, segments: frozenset[int]) -> Summary:
        """Hang, or score."""
        while len(self.begun.all_segments) // 2 in segments:
            time.sleep(1)
        return super().score(segments)


SCORERS: dict[str, type[Scorer]] = {
    "plain": Scorer,
    "slow": Slow,
    "fails-once": FailsOnce,
    "fails-always": FailsAlways,
    "loses-gpu": LosesGpu,
    "hangs": Hangs,
}
