"""Which of how many workers this process is, as the launcher that started it says, and which segments are its own.

    torchrun           RANK of WORLD_SIZE
    srun               SLURM_PROCID of SLURM_NTASKS
    sbatch --array     SLURM_ARRAY_TASK_ID from SLURM_ARRAY_TASK_MIN on, of SLURM_ARRAY_TASK_COUNT

An array whose tasks start several workers each is both: worker r of W in task t of T is worker t * W + r of T * W.
Nothing is asked of a network, and workers need not run at the same time.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradsae_fast.errors import ConfigError
from gradsae_fast.records import Segment

_TORCHRUN = ("RANK", "WORLD_SIZE")
_TASKS = ("SLURM_PROCID", "SLURM_NTASKS")
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
_FIRST, _STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"
_LOCAL_SIZE = "LOCAL_WORLD_SIZE"
_LOCAL = {"RANK": "LOCAL_RANK", "SLURM_PROCID": "SLURM_LOCALID"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Worker `rank`, counted from 0, of `size`."""

    rank: int
    size: int
    said_by: str  # the variables that say so, and their values
    local_rank: int | None = None  # among the workers of this machine, where the launcher says it
    local_size: int = 1  # how many of them see the same GPUs, as torchrun says

    def __str__(self) -> str:
        return f"worker {self.rank} of {self.size}, counted from 0 ({self.said_by})"


def find_worker(environment: Mapping[str, str]) -> Worker:
    """Return which worker this process is.

    Raises:
        ConfigError: no launcher says it, or what it says is incomplete or contradicts itself.

    >>> str(find_worker({"RANK": "1", "WORLD_SIZE": "4"}))
    'worker 1 of 4, counted from 0 (RANK 1, WORLD_SIZE 4)'
    """
    # Slurm gives every batch script a SLURM_PROCID, so that one alone says nothing.
    is_launched = (any(name in environment for name in _TORCHRUN), _TASKS[1] in environment)
    inner = next((pair for pair, is_so in zip((_TORCHRUN, _TASKS), is_launched, strict=True) if is_so), None)
    is_array = any(name in environment for name in _ARRAY)
    if inner is None and not is_array:
        raise ConfigError(
            "the engine 'static' scores one worker's part, but nothing says which worker this process is. Start it "
            "with torchrun, srun or an sbatch array, or set RANK (from 0) and WORLD_SIZE; --engine local scores "
            "everything."
        )
    parts = [_array(environment)] if is_array else []
    parts += [_of(environment, *inner)] if inner else []
    rank, size, said = 0, 1, []
    local_size = (
        _number(environment, _LOCAL_SIZE, _LOCAL_SIZE) if inner == _TORCHRUN and _LOCAL_SIZE in environment else 1
    )
    for one in parts:
        rank, size = rank * one.size + one.rank, size * one.size
        said.append(one.said_by)
    return Worker(
        rank=rank, size=size, said_by="; ".join(said), local_rank=_local_rank(environment, inner), local_size=local_size
    )


def segments_of(worker: Worker, segments: Sequence[Segment]) -> frozenset[int]:
    """Return the numbers of a worker's own segments, a function of the plan alone.

    The largest segment comes first, and each goes to the worker that has the fewest tokens so far, the lowest rank
    among equals: workers differ by less than one segment. Where segments are of equal size, every W-th is one's own.
    """
    loads = [(0, rank) for rank in range(worker.size)]
    own = set()
    for segment in sorted(segments, key=lambda segment: (-segment.num_tokens, segment.index)):
        tokens, rank = heapq.heappop(loads)
        heapq.heappush(loads, (tokens + segment.num_tokens, rank))
        if rank == worker.rank:
            own.add(segment.index)
    return frozenset(own)


def _of(environment: Mapping[str, str], rank_name: str, size_name: str) -> Worker:
    rank, size = _number(environment, rank_name, size_name), _number(environment, size_name, rank_name)
    said = f"{rank_name} {rank}, {size_name} {size}"
    return _checked(rank, size, said)


def _array(environment: Mapping[str, str]) -> Worker:
    name, count = _ARRAY
    task, size = _number(environment, name, count), _number(environment, count, name)
    first = _number(environment, _FIRST, name)
    step = _number(environment, _STEP, name) if _STEP in environment else 1
    said = f"{name} {task}, {_FIRST} {first}, {count} {size}" + (f", {_STEP} {step}" if step != 1 else "")
    if step < 1 or (task - first) % step:
        raise ConfigError(f"got {said}; expected an array without gaps, such as --array=0-{max(size - 1, 1)}.")
    return _checked((task - first) // step, size, said)


def _checked(rank: int, size: int, said: str) -> Worker:
    if not 0 <= rank < size:
        raise ConfigError(
            f"got {said}, which is worker {rank} of {size}; expected one from 0 to {size - 1}. Number workers without "
            "gaps (an array: --array=0-N)."
        )
    return Worker(rank=rank, size=size, said_by=said)


def _number(environment: Mapping[str, str], name: str, partner: str) -> int:
    value = environment.get(name)
    if value is None:
        raise ConfigError(f"got {partner} without {name}; expected both, or neither. Set {name}.")
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{name} is {value!r}; expected a whole number.") from error


def _local_rank(environment: Mapping[str, str], inner: tuple[str, str] | None) -> int | None:
    name = _LOCAL[inner[0]] if inner else None
    return _number(environment, name, name) if name is not None and name in environment else None
