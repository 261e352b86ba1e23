"""Making the index in a process of its own: seconds, processor seconds, peak memory and bytes."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.queries.memory import reset_peak, status_bytes
from gradsae_fast.ranking.index import build_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Costs of an index."""

    seconds: float
    cpu_seconds: float  # of all threads
    peak_bytes: int  # resident, of the whole process; 0 where the system does not tell
    index_bytes: int


def build_apart(store: Path) -> Built:
    """Make the index of a store anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_build, store).result()


def _build(store: Path) -> Built:
    before, begun, cpu = reset_peak(), time.perf_counter(), time.process_time()
    report = build_index(store)
    return Built(
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.process_time() - cpu,
        peak_bytes=0 if before is None else status_bytes("VmHWM"),
        index_bytes=report.num_bytes,
    )
