"""Rows over threads: plain Python threads around loops that release the GIL.

Shards are taken from a queue, so that a thread whose core is busy elsewhere (OpenMP workers spin for a while after each
matrix product) does less. What a shard computes depends on its rows alone: the number of threads changes no bit.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

SHARDS_PER_THREAD = 4

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: the threads of a pool do not survive a fork


def shard_rows(num_rows: int, smallest: int = 16) -> list[tuple[int, int]]:
    """Cut [0, num_rows) into equal runs, a few per thread that torch may use; one empty run of no rows."""
    shards = SHARDS_PER_THREAD * torch.get_num_threads()
    size = max(smallest, -(-num_rows // shards))
    return [(start, min(start + size, num_rows)) for start in range(0, max(1, num_rows), size)]


def run_shards(loop: Callable[..., Any], shards: list[tuple[int, int]], *arguments: Any) -> None:
    """Call `loop(start, stop, *arguments)` for every shard, on at most torch.get_num_threads() threads."""
    queue = deque(shards)

    def work() -> None:
        while queue:
            try:
                start, stop = queue.popleft()
            except IndexError:  # another thread took the last one
                return
            loop(start, stop, *arguments)

    others = min(torch.get_num_threads(), len(shards)) - 1
    futures = [_pool().submit(work) for _ in range(others)]
    try:
        work()
    finally:
        wait(futures)
    for future in futures:
        future.result()


def _pool() -> ThreadPoolExecutor:
    process = os.getpid()
    if process not in _pools:
        _pools.clear()
        _pools[process] = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gradsae_kernels")
    return _pools[process]
