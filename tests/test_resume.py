"""Crash at any moment, run the same command again: the store is byte-identical to an uninterrupted one.

Children come from a fork server that has torch imported but has computed nothing, so that a kill costs about a second.
"""

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import open_scores, verify
from gradsae_fast.config import ExtractConfig
from gradsae_fast.extract import extract

KILLS = 20


@pytest.fixture(scope="module")
def context() -> Any:
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["gradsae_fast.extract", "transformers.models.llama.modeling_llama"])
    return forkserver


def digests(path: str) -> list[str]:
    return [segment.digest for segment in open_scores(path).segments]


def start(context: Any, config: ExtractConfig) -> Any:
    child = context.Process(target=extract, args=(config,))
    child.start()
    return child


def complete(context: Any, config: ExtractConfig) -> float:
    """Run to the end; the seconds that it took."""
    started = time.monotonic()
    child = start(context, config)
    child.join()
    assert child.exitcode == 0
    return time.monotonic() - started


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(context: Any, configure: Any) -> None:
    whole, broken = configure("whole"), configure("broken")
    complete(context, configure("warm-up"))
    seconds = complete(context, whole)
    kills, moments = 0, random.Random(0)
    while kills < KILLS:
        child = start(context, broken)
        child.join(timeout=moments.uniform(0.1, 0.9) * seconds)
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        kills += child.exitcode == -signal.SIGKILL
        _keep_it_at_work(Path(broken.store.path), moments)
    complete(context, broken)
    assert digests(broken.store.path) == digests(whole.store.path)
    assert verify(broken.store.path) == []


def _keep_it_at_work(store: Path, moments: random.Random) -> None:
    """Give a store that is nearly finished work again, so that the next kill hits a run in its middle."""
    records = sorted((store / "commits").glob("*.json"))
    for record in moments.sample(records, 3) if len(records) > 5 else []:
        record.unlink()
