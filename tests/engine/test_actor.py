"""What a worker of a Ray cluster does, without the cluster: scores, answers, tries again, gives up."""

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast import open_scores
from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine.actor import ATTEMPTS, Failure, Scorer, StoreBegun, Summary, begin_store, is_lost_gpu
from gradsae_fast.errors import ConfigError, EngineError, StoreError
from gradsae_fast.extract import extract
from gradsae_fast.quality import Tally

Configure = Callable[..., ExtractConfig]


def ask(scorer: Scorer, segments: list[int]) -> Any:
    (answer,) = scorer({"segment": np.array(segments)})["answer"]
    return pickle.loads(answer)


@pytest.fixture
def begun(configure: Configure) -> ExtractConfig:
    """A run whose store was begun by another worker."""
    config = configure("together", run={"engine": "ray"})
    assert isinstance(pickle.loads(begin_store(config)), StoreBegun)
    return config


def test_workers_score_what_they_are_asked_for_and_no_more_than_is_left(
    configure: Configure, begun: ExtractConfig
) -> None:
    alone = configure("alone")
    report = extract(alone)
    expected = [segment.digest for segment in open_scores(alone.store.path).segments]
    first, second = Scorer(begun), Scorer(begun)
    last = len(expected) - 1
    answers = [ask(first, [2, 3]), ask(second, [3, last]), ask(first, [0, 1, 2]), ask(second, [*range(last + 1)])]
    assert [answer.num_segments for answer in answers] == [2, 1, 2, last + 1 - 5]
    assert sum(answer.num_tokens for answer in answers) == report.num_tokens
    tally = Tally()
    for answer in answers:
        tally.add(*answer.tallies.values())
    assert {tally.l0} == set(report.l0.values())
    assert [tally.fvu] == pytest.approx(list(report.fvu.values()))
    assert [segment.digest for segment in open_scores(begun.store.path).segments] == expected


def test_a_deliberate_error_is_an_answer(configure: Configure, begun: ExtractConfig) -> None:
    refused = pickle.loads(begin_store(configure("refused", corpus={"context_length": 500})))
    assert isinstance(refused, Failure)
    assert isinstance(refused.error, ConfigError)
    shutil.rmtree(begun.store.path)
    answer = ask(Scorer(begun), [0])
    assert isinstance(answer.error, StoreError)
    assert "does not see it; expected a folder that all machines share" in str(answer.error)
    assert not Path(begun.store.path).exists(), "it begins no store of its own"


def test_an_error_that_nobody_foresaw_is_tried_again_and_then_told(
    begun: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, score, failures = Scorer(begun), Scorer.score, [ZeroDivisionError("a mistake")] * (ATTEMPTS - 1)

    def fail(self: Scorer, segments: frozenset[int]) -> Summary:
        if failures:
            raise failures.pop()
        return score(self, segments)

    monkeypatch.setattr(Scorer, "score", fail)
    assert ask(scorer, [0]).num_segments == 1
    failures += [ZeroDivisionError("a mistake")] * ATTEMPTS
    answer = ask(scorer, [1, 2])
    assert isinstance(answer.error, EngineError)
    assert f"failed {ATTEMPTS} times at segments 1, 2: ZeroDivisionError: a mistake" in str(answer.error)
    assert "Traceback" in "".join(answer.error.__notes__)
    assert not failures


def test_a_worker_whose_gpu_is_lost_ends_itself_by_a_signal(
    begun: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(process: int, number: int) -> None:
        assert (process, number) == (os.getpid(), signal.SIGKILL)
        raise Ended

    def lose(_self: Scorer, _segments: frozenset[int]) -> Summary:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    scorer = Scorer(begun)
    monkeypatch.setattr(Scorer, "score", lose)
    monkeypatch.setattr(os, "kill", end)
    with pytest.raises(Ended):
        ask(scorer, [0])


def test_what_a_process_survives_is_no_lost_gpu() -> None:
    assert is_lost_gpu(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_lost_gpu(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_lost_gpu(RuntimeError("shape mismatch"))
    assert not is_lost_gpu(ValueError("CUDA error: in a text"))
