"""One question in a process of its own: seconds from opening the store to the answer, and the process's peak memory."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.queries.memory import reset_peak, status_bytes
from benchmarks.queries.questions import Subjects, questions
from gradsae_fast.store import open_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one question."""

    seconds: float  # asked as the first question of its process, which finds its own code and memory cold too
    later_seconds: float  # asked once more in that process
    peak_bytes: int  # resident, of the whole process with its libraries; 0 where the system does not tell
    raised_bytes: int  # of these, above what was resident before


def ask_apart(path: Path, name: str, subjects: Subjects, *, use_index: bool, cold: bool) -> Cost:
    """Ask in a new process, whose modules are loaded; `cold`: with no file of the store in the page cache."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.queries.asked"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_ask, path, name, subjects, use_index, cold).result()


def drop_from_cache(store: Path) -> None:
    """Let the system forget every file of a store (Linux; a hint that it follows for files that are synced)."""
    for path in store.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _ask(path: Path, name: str, subjects: Subjects, use_index: bool, cold: bool) -> Cost:
    question = questions(subjects)[name]
    pa.table({"loads what pyarrow loads late": [0]})
    spent = []
    before = reset_peak()
    for _ in range(2):
        if cold:
            drop_from_cache(path)
        begun = time.perf_counter()
        question(open_scores(path, use_index=use_index))
        spent.append(time.perf_counter() - begun)
    peak = 0 if before is None else status_bytes("VmHWM")
    first, later = spent
    return Cost(seconds=first, later_seconds=later, peak_bytes=peak, raised_bytes=peak - (before or 0))
