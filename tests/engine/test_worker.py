"""Which worker a process is, in every launcher's spelling; and what part of the plan is its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsae_fast.engine.worker import Worker, find_worker, segments_of
from gradsae_fast.errors import ConfigError
from gradsae_fast.records import Segment

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "5",
    "SLURM_ARRAY_TASK_MAX": "8",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_PROCID": "0",  # which a batch script has in any case
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}


@pytest.mark.parametrize(
    ("environment", "rank", "size", "local"),
    [
        (TORCHRUN, 1, 3, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1, None),
        (SRUN, 5, 8, 2),
        (TORCHRUN | SRUN, 1, 3, 1),
        (ARRAY, 2, 4, None),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "5"}, 0, 4, None),
        (ARRAY | {"SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, 2, 4, 0),
        (ARRAY | SRUN, 2 * 8 + 5, 4 * 8, 2),
        (ARRAY | TORCHRUN, 2 * 3 + 1, 4 * 3, 1),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_STEP": "2"}, 2, 4, None),
    ],
)
def test_a_launcher_says_which_worker_this_is(
    environment: dict[str, str], rank: int, size: int, local: int | None
) -> None:
    worker = find_worker({"HOME": "/", **environment})
    assert (worker.rank, worker.size, worker.local_rank) == (rank, size, local)
    assert f"worker {rank} of {size}" in str(worker)
    said = [name for name in ("RANK", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID") if f"{name} " in str(worker)]
    assert said, "it says which variables were believed"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "nothing says which worker this process is"),
        ({"SLURM_PROCID": "0"}, "nothing says which worker"),
        ({"RANK": "0"}, "RANK without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE without RANK"),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS without SLURM_PROCID"),
        ({"RANK": "two", "WORLD_SIZE": "4"}, "RANK is 'two'; expected a whole number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "worker 4 of 4; expected one from 0 to 3"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "worker -1 of 4"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_ID without SLURM_ARRAY_TASK_COUNT"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "9"}, "worker 4 of 4"),
        (
            {name: value for name, value in ARRAY.items() if name != "SLURM_ARRAY_TASK_MIN"},
            "without SLURM_ARRAY_TASK_M",
        ),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_STEP": "2"}, "an array without gaps"),
    ],
)
def test_an_environment_that_says_too_little_or_too_much_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_worker(environment)


def plan(tokens: list[int]) -> list[Segment]:
    return [
        Segment(index=index, first_document=index, num_documents=1, num_tokens=count)
        for index, count in enumerate(tokens)
    ]


@given(tokens=st.lists(st.integers(0, 1000), max_size=60), size=st.integers(1, 9))
def test_every_segment_is_one_workers_own_and_parts_differ_by_less_than_a_segment(tokens: list[int], size: int) -> None:
    segments = plan(tokens)
    parts = [segments_of(Worker(rank=rank, size=size, said_by="a test"), segments) for rank in range(size)]
    assert sorted(index for part in parts for index in part) == list(range(len(tokens)))
    loads = [sum(tokens[index] for index in part) for part in parts]
    assert max(loads) - min(loads) <= max(tokens, default=0)


def test_of_equal_segments_a_worker_has_every_nth() -> None:
    assert segments_of(Worker(rank=1, size=3, said_by="a test"), plan([5] * 8)) == {1, 4, 7}
