"""Workers that a launcher started: whoever writes a segment, its bytes are those of a run alone."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast import open_scores, verify
from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine.static import extract_own_part
from gradsae_fast.errors import ConfigError
from gradsae_fast.extract import extract

Configure = Callable[..., ExtractConfig]
WORKERS = 3


def start(forkserver: Any, config: ExtractConfig, rank: int, size: int = WORKERS) -> Any:
    environment = {"RANK": str(rank), "WORLD_SIZE": str(size)}
    child = forkserver.Process(
        target=extract_own_part, args=(config, environment), kwargs={"tell": print, "on_progress": id}
    )
    child.start()
    return child


def finish(children: list[Any]) -> list[int]:
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def digests(path: str) -> list[str]:
    return [segment.digest for segment in open_scores(path).segments]


@pytest.fixture
def alone(configure: Configure) -> list[str]:
    """The digests of a run by one process."""
    config = configure("alone")
    extract(config)
    return digests(config.store.path)


def test_workers_at_once_leave_the_bytes_of_one_process(
    forkserver: Any, configure: Configure, alone: list[str]
) -> None:
    config = configure("shared", run={"engine": "static"})
    assert finish([start(forkserver, config, rank) for rank in range(WORKERS)]) == [0] * WORKERS
    store = open_scores(config.store.path)
    assert digests(config.store.path) == alone
    assert len({segment.commit["writer"]["process"] for segment in store.segments}) == WORKERS
    assert store.index is not None, "the last worker makes it"
    assert verify(config.store.path) == []


def test_a_worker_that_was_killed_is_started_again_and_other_numbers_of_workers_go_on(
    forkserver: Any, configure: Configure, alone: list[str]
) -> None:
    config = configure("shared", run={"engine": "static"})
    children = [start(forkserver, config, rank) for rank in range(WORKERS)]
    commits = Path(config.store.path) / "commits"
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(commits.glob("*.json")):
        time.sleep(0.01)
    children[1].kill()
    codes = finish(children)
    assert codes[1] in (0, -signal.SIGKILL)
    assert (codes[0], codes[2]) == (0, 0)
    assert finish([start(forkserver, config, rank, 2) for rank in range(2)]) == [0, 0]
    assert digests(config.store.path) == alone
    assert open_scores(config.store.path).index is not None
    assert verify(config.store.path) == []


def test_a_worker_does_its_own_part_and_says_what_is_left(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, alone: list[str]
) -> None:
    told: list[str] = []
    config = configure("shared", run={"engine": "static"})
    for name, value in {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    report = extract(config, on_message=told.append)
    store = open_scores(config.store.path)
    assert report.num_segments == len(store.segments)
    assert report.num_left == store.num_segments - len(store.segments) > 0
    assert store.index is None
    assert any("worker 1 of 2, counted from 0 (SLURM_ARRAY_TASK_ID 1" in line for line in told)
    assert any(f"{report.num_left} segments are left to other workers" in line for line in told)
    rest = extract(configure("shared"))
    assert rest.num_skipped == report.num_segments
    assert digests(config.store.path) == alone
    assert open_scores(config.store.path).index is not None


def test_without_a_launcher_nothing_is_begun(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    config = configure("shared", run={"engine": "static"})
    with pytest.raises(ConfigError, match="Start it with torchrun, srun or an sbatch array"):
        extract(config)
    assert not Path(config.store.path).exists()
