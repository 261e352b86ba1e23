"""What runs inside the workers of a Ray cluster: one task that begins the store, and actors that hold a model each.

They get the configuration and segment numbers, and answer with small values; what went wrong is an answer too. A worker
whose GPU is lost ends its own process with a signal, which Ray takes for a crash and replaces: an exit or an exception
would end the run, or be tried again on the same lost GPU.
"""

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.segments import SegmentReader
from gradsae_fast.engine.line import begin, new_tallies, score
from gradsae_fast.engine.report import Progress
from gradsae_fast.errors import EngineError, GradsaeError, StoreError
from gradsae_fast.quality import Tally
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.facts import read_facts

ATTEMPTS = 3  # at the same segments by the same worker, where something fails that is no deliberate error
_OF_LOST_GPUS = ("CUDA error", "device-side assert", "unspecified launch failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBegun:
    """The plan of a run whose store is there."""

    segment_tokens: tuple[int, ...]  # of each segment
    first_segment: int  # its number in the store
    messages: tuple[str, ...]  # decisions that were taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a worker did about some segments."""

    worker: str  # machine and process
    num_segments: int  # that it committed
    num_tokens: int
    bytes_written: int
    tallies: Mapping[str, Tally]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a worker could not do what it was asked to."""

    worker: str
    error: GradsaeError


def begin_store(config: ExtractConfig) -> bytes:
    """Begin the store of a run; returns a pickled StoreBegun or Failure."""
    messages: list[str] = []
    try:
        with begin(config, tell=messages.append, shared=True) as begun:
            answer: StoreBegun | Failure = StoreBegun(
                segment_tokens=tuple(segment.num_tokens for segment in begun.prepared.plan.segments),
                first_segment=begun.writer.generation.first_segment,
                messages=tuple(messages),
            )
    except GradsaeError as error:
        answer = Failure(worker=_this_worker(), error=error)
    return pickle.dumps(answer)


class Scorer:
    """One worker: model and SAEs in memory, the store open. Called with segment numbers, it scores and commits them."""

    def __init__(self, config: ExtractConfig) -> None:
        self._failure: Failure | None = None
        try:
            _expect_store(config)
            self.begun = begin(config, tell=_ignore, shared=True)
        except GradsaeError as error:
            self._failure = Failure(worker=_this_worker(), error=error)
            return
        prepared = self.begun.prepared
        self.reader = SegmentReader(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Take a column `segment`; give a column `answer` of one pickled Summary or Failure."""
        return {"answer": [pickle.dumps(self._failure or self._answer(frozenset(batch["segment"].tolist())))]}

    def score(self, segments: frozenset[int]) -> Summary:
        """Score and commit those of these segments that nobody has committed."""
        left = frozenset(index for index in segments if not self.begun.writer.is_committed(index))
        tallies = new_tallies(self.begun)
        report = score(self.begun, left, on_progress=_ignore, read=self.reader.read, tallies=tallies)
        return Summary(
            worker=_this_worker(),
            num_segments=report.num_segments,
            num_tokens=report.num_tokens,
            bytes_written=report.bytes_written,
            tallies=tallies,
        )

    def _answer(self, segments: frozenset[int]) -> Summary | Failure:
        try:
            return self._patiently(segments)
        except GradsaeError as error:
            return Failure(worker=_this_worker(), error=error)

    def _patiently(self, segments: frozenset[int]) -> Summary:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.score(segments)
            except GradsaeError:
                raise
            except Exception as error:
                if is_lost_gpu(error):
                    os.kill(os.getpid(), signal.SIGKILL)
                if attempt == ATTEMPTS:
                    raise _gave_up(segments, error) from error
        raise AssertionError("the last attempt returns or raises")


def is_lost_gpu(error: BaseException) -> bool:
    """Whether an error leaves this process without its GPU for good; running out of its memory does not."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OF_LOST_GPUS)


def _expect_store(config: ExtractConfig) -> None:
    """Refuse to begin a store of one's own where the common one cannot be seen."""
    if read_facts(place_of(config.store.path), "gate") is None:
        raise StoreError(
            f"{config.store.path} was begun by another worker, but {socket.gethostname()} does not see it; expected a "
            "folder that all machines share, or s3://bucket/prefix"
        )


def _gave_up(segments: frozenset[int], error: Exception) -> EngineError:
    numbers = ", ".join(map(str, sorted(segments)))
    found = EngineError(
        f"a worker failed {ATTEMPTS} times at segments {numbers}: {type(error).__name__}: {error}. What was committed "
        "stays. Mend the cause and run the same command again."
    )
    found.add_note("".join(traceback.format_exception(error)))
    return found


def _this_worker() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _ignore(_said: str | Progress) -> None:
    """Nobody listens inside a worker."""
