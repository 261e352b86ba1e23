"""What a run tells while it goes on, and when it is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradsae_fast.exact import ExactReport
from gradsae_fast.stages import Recording
from gradsae_fast.store.places.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is; sent after every batch, and at the end."""

    num_tokens: int  # scored so far, earlier runs of the same store included
    total_tokens: int
    num_segments: int  # committed so far
    total_segments: int
    tokens_per_second: float  # of this run
    bytes_written: int  # by this run
    l0: Mapping[str, float]
    fvu: Mapping[str, float]

    @property
    def seconds_left(self) -> float:
        """Expected seconds until the end, at the present speed."""
        left = self.total_tokens - self.num_tokens
        return left / self.tokens_per_second if self.tokens_per_second else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What a run did."""

    store: Place
    num_segments: int  # written by this run
    num_skipped: int  # were there already
    num_tokens: int  # scored by this run
    seconds: float  # of scoring and writing, without loading and planning
    bytes_written: int
    l0: Mapping[str, float]
    fvu: Mapping[str, float]
    num_left: int = 0  # of the store's segments: those that other workers have still to write
    exact: ExactReport | None = None  # of the pass over dense latents, where one was asked for
    profile: Recording | None = None  # where the time of scoring and writing went, where that was asked for
    trace: Path | None = None  # the same, span by span, as a Chrome trace
