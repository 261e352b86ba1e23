"""What can happen to a run on many machines, made to happen on a cluster of nodes on this one.

Each trial has a fresh store and ends with a run that completes it. Then its segments must be those of an uninterrupted
run by one process, byte for byte, each committed once, the store sound and indexed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from gradsae_fast import open_scores, verify
from gradsae_fast.store.records.commits import find_records, read_record

_STALL_MINUTES = 2.0  # more than the start of a worker takes on a busy machine
_PATIENCE = 900.0  # seconds for what takes a minute on a machine with nothing else to do


@dataclass(slots=True, kw_only=True)
class Trial:
    """One run, what happens to it, and what was seen."""

    name: str
    folder: Path
    cluster: Cluster
    nodes: list[Any]
    seen: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def store(self) -> Path:
        """Where the scores go."""
        return self.folder / "scores"

    def start(self, scorer: str = "slow", stall_minutes: float = 30.0) -> subprocess.Popen[str]:
        """Start a driver."""
        words = [str(self.folder), scorer, self.cluster.address, str(stall_minutes)]
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.many_machines.drive", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_BACKEND_LOG_LEVEL": "error"},
        )

    def wait_for_commits(self, count: int) -> None:
        """Return when so many segments are committed."""
        until = time.monotonic() + _PATIENCE
        while len(self.commits()) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name}: {len(self.commits())} of {count} commits after {_PATIENCE} s")
            time.sleep(0.05)

    def commits(self) -> dict[int, Path]:
        """The commit records that there are."""
        return find_records(self.store) if (self.store / "commits").is_dir() else {}  # type: ignore[return-value]

    def finish(self, driver: subprocess.Popen[str], code: int = 0) -> str:
        """Wait for a driver's end, expected with this exit status; returns what it said."""
        said, _ = driver.communicate(timeout=_PATIENCE)
        if driver.returncode != code:
            raise AssertionError(f"{self.name}: exit status {driver.returncode}, expected {code}:\n{said}")
        return said

    def complete(self) -> None:
        """Run to the end, whatever came before."""
        self.seen.append(f"{len(self.commits())} segments committed before the last run")
        self.finish(self.start("plain"))


def nothing(trial: Trial) -> None:
    """Nothing happens."""
    trial.finish(trial.start())


def node_killed(trial: Trial) -> None:
    """A machine is lost for good; the other one does the rest."""
    driver = trial.start()
    trial.wait_for_commits(2)
    trial.cluster.remove_node(trial.nodes.pop(), allow_graceful=False)
    trial.seen.append(f"lost after {len(trial.commits())} commits")
    trial.finish(driver)


def node_replaced(trial: Trial) -> None:
    """Both machines are lost; a new one comes."""
    driver = trial.start()
    trial.wait_for_commits(2)
    for node in (trial.nodes.pop(), trial.nodes.pop()):
        trial.cluster.remove_node(node, allow_graceful=False)
    trial.seen.append(f"lost after {len(trial.commits())} commits")
    trial.nodes.append(trial.cluster.add_node(num_cpus=1))
    trial.finish(driver)


def worker_killed(trial: Trial) -> None:
    """A worker's process gets SIGKILL."""
    driver = trial.start()
    trial.wait_for_commits(2)
    process = read_record(next(iter(trial.commits().values()))).writer["process"]
    os.kill(process, signal.SIGKILL)
    trial.seen.append(f"killed after {len(trial.commits())} commits")
    trial.finish(driver)


def driver_killed(trial: Trial) -> None:
    """The driver gets SIGKILL and is started again."""
    driver = trial.start()
    trial.wait_for_commits(3)
    driver.kill()
    driver.communicate()
    trial.complete()


def error_once(trial: Trial) -> None:
    """An error that nobody foresaw, once: it is tried again."""
    trial.finish(trial.start("fails-once"))
    assert trial.store.with_name(f"{trial.store.name}.happened").exists()


def error_always(trial: Trial) -> None:
    """An error that nobody foresaw, each time: the run ends and says so, and goes on when it is mended."""
    said = trial.finish(trial.start("fails-always"), code=1)
    assert "ZeroDivisionError: a mistake in a kernel" in said, said
    trial.complete()


def gpu_lost(trial: Trial) -> None:
    """A worker's GPU is lost: it ends its process, and another one takes its place."""
    trial.finish(trial.start("loses-gpu"))
    assert trial.store.with_name(f"{trial.store.name}.happened").exists()


def stalled(trial: Trial) -> None:
    """A worker hangs: the run ends, says what it knows of the workers, and goes on when started again."""
    said = trial.finish(trial.start("hangs", stall_minutes=_STALL_MINUTES), code=1)
    assert "nothing was committed for" in said, said
    assert "Last heard of: process" in said, f"it ended before any worker had begun:\n{said}"
    assert 0 < len(trial.commits()) < open_scores(trial.store).num_segments
    trial.complete()


TRIALS: dict[str, Callable[[Trial], None]] = {
    "nothing happens": nothing,
    "a machine is lost": node_killed,
    "all machines are lost and one comes": node_replaced,
    "a worker gets SIGKILL": worker_killed,
    "the driver gets SIGKILL and is started again": driver_killed,
    "an error, once": error_once,
    "an error, always, then mended": error_always,
    "a worker's GPU is lost": gpu_lost,
    "a worker hangs": stalled,
}


@contextmanager
def machines(count: int = 2) -> Iterator[tuple[Cluster, list[Any]]]:
    """A cluster of a head without CPUs and machines of one CPU, all of them processes of this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(count)]
    finally:
        cluster.shutdown()


def carry_out(trial: Trial, expected: list[str]) -> list[str]:
    """Do one trial; returns what does not hold."""
    started = time.monotonic()
    TRIALS[trial.name](trial)
    trial.seconds = time.monotonic() - started
    faults = [str(fault) for fault in verify(trial.store)]
    store = open_scores(trial.store)
    if [segment.digest for segment in store.segments] != expected:
        faults.append("other bytes than those of the uninterrupted run")
    if store.index is None:
        faults.append("no index")
    return [f"{trial.name}: {fault}" for fault in faults]
