"""What is done to a store in a bucket: faults to writers and readers, killed servers, two writers at once.

Each trial is one fault, kill or round; each returns what was promised and not kept, as sentences.
"""

import itertools
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.durability.contents import numbers
from benchmarks.durability.small_run import ignore, small_segment
from benchmarks.object_storage.promised import Promised, repeat, unnamed, write
from benchmarks.object_storage.proxy import Fault, Proxy, Request
from benchmarks.object_storage.servers import BUCKET, Server, environment
from gradsae_fast.errors import GradsaeError, StoreError
from gradsae_fast.store import open_scores, verify
from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.places import connection
from gradsae_fast.store.places.durable import TEMPORARY
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.commits import SEGMENTS

WRITING = (
    Fault.SLOW_DOWN,
    Fault.ERROR,
    Fault.REFUSED,
    Fault.LANDED_LOST,
    Fault.LANDED_ERROR,
    Fault.LANDED_LATE,
    Fault.CUT_UPLOAD,
    Fault.CUT_RESPONSE,
    Fault.SLOW,
)
READING = (Fault.SLOW_DOWN, Fault.ERROR, Fault.REFUSED, Fault.LANDED_LOST, Fault.CUT_RESPONSE, Fault.SLOW)
_LIVES = 12
_stores = itertools.count()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Trials of one sort, and the promises that they broke."""

    what: str = ""
    trials: int = 0
    violations: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def new_store() -> str:
    """Return an address that no trial has had, of this process or another."""
    return f"s3://{BUCKET}/{os.getpid()}-{time.time_ns():x}-{next(_stores)}/scores.gradsae"


@contextmanager
def impatient(max_retries: int) -> Iterator[None]:
    """Let clients repeat a request so often, at once; what a run waits for minutes with is not on trial."""
    moment = timedelta(milliseconds=5)
    backoff = {"init_backoff": moment, "max_backoff": moment, "base": 2}
    retry = {"max_retries": max_retries, "retry_timeout": timedelta(seconds=60), "backoff": backoff}
    with mock.patch.multiple(connection, RETRY=retry, FIRST_RETRY=retry):
        yield


@contextmanager
def through(url: str) -> Iterator[None]:
    """Let clients that are made meanwhile find the server there."""
    with mock.patch.dict(os.environ, environment(url)):
        yield


class Chance:
    """Chooses a fault at random, conditional writes (commits, and what else is created once) more often."""

    def __init__(self, fault: Fault, seed: int, share: float) -> None:
        self._random = random.Random(seed)
        self._fault = fault
        self._share = share
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault:
        """Say what befalls a request."""
        with self._lock:
            drawn = self._random.random()
        return self._fault if drawn < (0.4 if request.is_conditional else self._share) else Fault.NONE


def faulty_writes(server: Server, promised: Promised, fault: Fault, faults: int, seed: int) -> Outcome:
    """Write stores through a fault until so many of it have happened; each store is checked after each attempt."""
    outcome = Outcome()
    chance = random.Random(seed)
    with Proxy(("127.0.0.1", server.port), Chance(fault, seed, chance.choice([0.02, 0.1]))) as proxy:
        while proxy.faults[fault] < faults:
            store, acknowledged = new_store(), set[int]()
            for _ in range(_LIVES):
                with impatient(chance.choice([0, 3])), through(proxy.url):
                    done, wrong = repeat(lambda: write(store, acknowledged.add), store, 1)  # noqa: B023
                outcome.violations += wrong
                outcome.notes["interrupted"] = outcome.notes.get("interrupted", 0) + (not done)
                if done:
                    break
                with through(server.url):
                    outcome.violations += promised.broken(store, acknowledged)
            outcome.violations += _finished(server, promised, store, acknowledged)
        outcome.trials = proxy.faults[fault]
    return outcome


def faulty_reads(server: Server, promised: Promised, fault: Fault, faults: int, seed: int) -> Outcome:
    """Read a whole store, and verify it, through a fault until so many of it have happened."""
    outcome = Outcome()
    store, acknowledged = new_store(), set[int]()
    outcome.violations += _finished(server, promised, store, acknowledged)
    chance = random.Random(seed)
    with Proxy(("127.0.0.1", server.port), Chance(fault, seed, 0.2)) as proxy:
        while proxy.faults[fault] < faults:
            with impatient(chance.choice([0, 3])), through(proxy.url):
                outcome.violations += promised.misread(store)
        outcome.trials = proxy.faults[fault]
    return outcome


def two_writers(server: Server, promised: tuple[Promised, Promised], rounds: int, seed: int) -> Outcome:
    """Let two writers write one store at once, in every other round with other numbers for the same segments."""
    outcome = Outcome()
    chance = random.Random(seed)
    with Proxy(("127.0.0.1", server.port), Chance(Fault.LANDED_LOST, seed, 0.01)) as proxy:
        for number in range(rounds):
            store, seeds = new_store(), (0, number % 2)
            with impatient(chance.choice([1, 3])), through(proxy.url):
                said = _race(store, seeds)
            with through(server.url):
                outcome.violations += _not_one_of_both(store, promised, seeds, said)
            outcome.trials += 1
    return outcome


def _race(store: str, seeds: tuple[int, int]) -> list[set[int]]:
    """Write with two writers; return what each acknowledged."""
    said: list[set[int]] = [set(), set()]
    start = threading.Barrier(2)

    def run(number: int) -> None:
        start.wait()
        try:
            write(store, said[number].add, shared=True, seed=seeds[number])
        except GradsaeError:
            return  # the loser of a segment with other content, or of a server that did not answer

    threads = [threading.Thread(target=run, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def _not_one_of_both(
    store: str, promised: tuple[Promised, Promised], seeds: tuple[int, int], said: list[set[int]]
) -> list[str]:
    place = place_of(store)
    if not (place / "run.json").exists():
        return [f"{store}: acknowledged, and there is no store"] if said[0] | said[1] else []
    seen = {segment.index: segment.digest for segment in open_scores(place, use_index=False).segments}
    found = []
    for seed, acknowledged in zip(seeds, said, strict=True):
        found += [
            f"{store}: segment {index} was acknowledged to the writer of {seed}, and is not its"
            for index in acknowledged
            if seen.get(index) != promised[seed].digests[index]
        ]
    return found


def revised_stores(server: Server, folder: Path, rounds: int, seed: int) -> Outcome:
    """Drop a document and compact, responses lost, until both succeed; the store is as it would be on a disk."""
    outcome = Outcome()
    gone = small_segment(1).documents.key[0]
    on_disk = folder / "revised"
    write(on_disk, ignore)
    drop_documents(on_disk, [gone])
    compact_segments(on_disk)
    expected = [numbers(segment) for segment in open_scores(on_disk).segments]
    with Proxy(("127.0.0.1", server.port), Chance(Fault.LANDED_LOST, seed, 0.02)) as proxy:
        for _ in range(rounds):
            store = new_store()
            with through(server.url):
                write(store, ignore)
            for revise in (partial(drop_documents, store, [gone]), partial(compact_segments, store)):
                with impatient(3), through(proxy.url):
                    done, wrong = repeat(revise, store, _LIVES)
                outcome.violations += wrong if done else [*wrong, f"{store}: {revise.func.__name__} never succeeds"]
            with through(server.url):
                outcome.violations += _not_as_revised(store, expected)
            outcome.trials += 1
    return outcome


def _not_as_revised(store: str, expected: Sequence[str]) -> list[str]:
    place = place_of(store)
    found = [f"{store}: {fault}" for fault in verify(place)]
    segments = open_scores(place, use_index=False).segments
    if [numbers(segment) for segment in segments] != list(expected):
        found.append(f"{store}: revised, it has other numbers than on a disk")
    there = {path.name for path in (place / SEGMENTS).iterdir() if path.is_dir()}
    if left := there - {segment.folder.name for segment in segments}:
        found.append(f"{store}: what was replaced is still there: {sorted(left)}")
    return found


def killed_servers(server: Server, promised: Promised, kills: int, seed: int) -> Outcome:
    """Kill the server while a writer writes, and start it again; the writer waits for it, or fails and is run again."""
    outcome = Outcome()
    chance = random.Random(seed)
    for _ in range(kills):
        store, acknowledged, errors = new_store(), set[int](), list[str]()

        def run(store: str = store, acknowledged: set[int] = acknowledged, errors: list[str] = errors) -> None:
            done, wrong = repeat(lambda: write(store, acknowledged.add), store, 1)
            what = "waited out" if done else "failed"
            outcome.notes[what] = outcome.notes.get(what, 0) + 1
            errors += wrong

        with through(server.url):
            thread = threading.Thread(target=run)
            thread.start()
            time.sleep(chance.uniform(0.05, 2))
            server.kill()
            time.sleep(chance.uniform(0, 1))
            server.start()
            thread.join()
            outcome.violations += errors + promised.broken(store, acknowledged)
        outcome.violations += _finished(server, promised, store, acknowledged)
        outcome.trials += 1
    return outcome


def ignored_conditions(server: Server, times: int) -> Outcome:
    """Write to a server that ignores conditions, which must be refused every time, before anything is there."""
    outcome = Outcome()
    with through(server.url):
        for _ in range(times):
            store = new_store()
            try:
                write(store, lambda _: None)
                outcome.violations.append(f"{store}: was written")
            except StoreError as error:
                outcome.violations += unnamed(error, store)
                if "created twice" not in str(error):
                    outcome.violations.append(f"{store}: refused for another reason: {error}")
            place = place_of(store)
            left = [path.name for path in place.iterdir() if not path.name.startswith(TEMPORARY)]
            outcome.violations += [f"{store}: left {name}" for name in left]
            outcome.trials += 1
    return outcome


def _finished(server: Server, promised: Promised, store: str, acknowledged: set[int]) -> list[str]:
    """Run to the end without faults, and check."""
    with through(server.url):
        write(store, acknowledged.add)
        return promised.broken(store, acknowledged, complete=True)
