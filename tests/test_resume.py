"""Crash at any moment, run the same command again: the store is byte-identical to an uninterrupted one."""

import random
import signal
import time
from pathlib import Path
from typing import Any

from gradsae_fast import open_scores, verify
from gradsae_fast.config import ExtractConfig
from gradsae_fast.extract import extract
from gradsae_fast.store.records.commits import read_record
from gradsae_fast.store.sidecars.dictionary import dictionary_record

KILLS = 20


def digests(path: str) -> list[str]:
    """Of the bytes of all segments, and of the dictionary."""
    segments = [segment.digest for segment in open_scores(path).segments]
    return [*segments, read_record(dictionary_record(Path(path))).digest]


def start(forkserver: Any, config: ExtractConfig) -> Any:
    child = forkserver.Process(target=extract, args=(config,))
    child.start()
    return child


def complete(forkserver: Any, config: ExtractConfig) -> float:
    """Run to the end; the seconds that it took."""
    started = time.monotonic()
    child = start(forkserver, config)
    child.join()
    assert child.exitcode == 0
    return time.monotonic() - started


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(forkserver: Any, configure: Any) -> None:
    whole, broken = configure("whole"), configure("broken")
    complete(forkserver, configure("warm-up"))
    seconds = complete(forkserver, whole)
    kills, moments = 0, random.Random(0)
    while kills < KILLS:
        child = start(forkserver, broken)
        child.join(timeout=moments.uniform(0.1, 0.9) * seconds)
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        kills += child.exitcode == -signal.SIGKILL
        _keep_it_at_work(Path(broken.store.path), moments)
    complete(forkserver, broken)
    assert digests(broken.store.path) == digests(whole.store.path)
    assert verify(broken.store.path) == []


def _keep_it_at_work(store: Path, moments: random.Random) -> None:
    """Give a store that is nearly finished work again, so that the next kill hits a run in its middle."""
    records = sorted((store / "commits").glob("*.json"))
    for record in moments.sample(records, 3) if len(records) > 5 else []:
        record.unlink()
