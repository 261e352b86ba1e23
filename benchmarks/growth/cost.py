"""What a call costs: seconds, processor seconds of all threads, and how far it raises the process's memory."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

SECONDS, CPU_SECONDS, PEAK = "seconds", "CPU seconds", "peak bytes"
_PRELOADED = ["gradsae_fast.extract", "transformers.models.llama.modeling_llama", "benchmarks.growth.series"]
_KIBIBYTE = 1024

Found = dict[tuple[str, str], float]  # (line, unit) -> amount, of one size in one round
_T = TypeVar("_T")


def measure(line: str, call: Callable[[], _T], found: Found) -> _T:
    """Run it once, and add what it cost to `found`; peak memory only where the system tells it (Linux)."""
    before = _reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    answer = call()
    found[line, SECONDS] = time.perf_counter() - wall
    found[line, CPU_SECONDS] = time.process_time() - cpu
    if before is not None:
        found[line, PEAK] = float(_status("VmHWM") - before)
    return answer


def measure_short(line: str, call: Callable[[], Any], found: Found, at_least: float = 0.2) -> None:
    """Median costs of as many calls as fill `at_least` seconds, three or more, after one that does not count."""
    call()
    rounds: list[Found] = []
    while len(rounds) < 3 or sum(one[line, SECONDS] for one in rounds) < at_least:
        rounds.append({})
        measure(line, call, rounds[-1])
    for unit in (SECONDS, CPU_SECONDS):
        found[line, unit] = statistics.median(one[line, unit] for one in rounds)


def in_child(call: Callable[..., _T], *arguments: Any) -> _T:
    """Call it in a process of its own, which has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments).result()


def _reset_peak() -> int | None:
    """Begin a new peak; the resident bytes that it begins with, or None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * _KIBIBYTE
