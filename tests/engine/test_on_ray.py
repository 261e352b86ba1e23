"""What a driver makes of its workers' answers and of their silence, without a cluster."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine import on_ray
from gradsae_fast.engine.actor import Failure, StoreBegun, Summary
from gradsae_fast.engine.cluster import cluster, crew_of
from gradsae_fast.engine.on_ray import _begin, _Watch, _with_whole_paths
from gradsae_fast.engine.report import Progress
from gradsae_fast.errors import ConfigError, EngineError, ScoreError
from gradsae_fast.quality import Tally
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.changes.compact import compact_segments
from tests.store.synthetic import IDENTITY, make_segment

Configure = Callable[..., ExtractConfig]
TOKENS = (40, 40, 40)


def pretended(gpus: float = 0, nodes: int = 3, labels: dict[str, str] | None = None) -> Any:
    """What is asked of the module `ray`, of a cluster that does not exist; its first alive machine has all GPUs."""
    machines = [
        {
            "Alive": number > 0,
            "NodeManagerHostname": f"machine-{number}",
            "Resources": {"CPU": 4.0, "GPU": float(gpus)} if number == 1 else {"CPU": 4.0} if number else {},
            "Labels": {"ray.io/node-id": f"{number}", **(labels or {})},
        }
        for number in range(nodes)
    ]
    resources = {"CPU": 4.0 * (nodes - 1), "GPU": float(gpus)}
    return SimpleNamespace(
        nodes=lambda: machines,
        cluster_resources=lambda: resources,
        available_resources=lambda: resources,
        exceptions=SimpleNamespace(RayError=ConnectionResetError, GetTimeoutError=TimeoutError),
    )


@pytest.fixture
def watch(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> _Watch:
    """The watch over a store of three segments, of which one was there; it looks often."""
    monkeypatch.setattr(on_ray, "_POLL_SECONDS", 0.01)
    config = configure("scores", run={"engine": "ray"})
    commit(config, 0)
    begun = StoreBegun(segment_tokens=TOKENS, first_segment=0, messages=())
    return _Watch(pretended(), config, begun, lambda progress: told.append(progress))


told: list[Progress] = []


def commit(config: ExtractConfig, index: int) -> None:
    with ScoreWriter.create_or_resume(
        config.store.path, run={}, identity=IDENTITY, num_segments=len(TOKENS), shared=True
    ) as writer:
        writer.write(make_segment(index))


def summary(worker: str = "process 1 on machine-1") -> Summary:
    tally = Tally(num_tokens=40, num_active=200)
    return Summary(worker=worker, num_segments=1, num_tokens=40, bytes_written=1000, tallies={"a site": tally})


def test_progress_is_what_the_store_shows(configure: Configure, watch: _Watch) -> None:
    config = configure("scores")

    def answers() -> Iterator[Summary]:
        for index in (2, 1):
            commit(config, index)
            yield summary()

    watch.follow(answers())
    assert told[-1].num_tokens == told[-1].total_tokens == sum(TOKENS)
    assert told[-1].l0 == {"a site": 5.0}
    report = watch.report(watch.place)
    assert (report.num_segments, report.num_skipped, report.num_tokens) == (2, 1, 80)


def test_an_error_of_a_worker_is_raised_by_the_driver(watch: _Watch) -> None:
    failure = Failure(worker="process 7 on machine-2", error=ScoreError("a gradient is NaN"))
    with pytest.raises(ScoreError, match="a gradient is NaN") as raised:
        watch.follow(iter([summary(), failure]))
    assert raised.value.__notes__ == ["in process 7 on machine-2"]


def test_silence_ends_a_run_that_says_what_it_knows(watch: _Watch) -> None:
    silent = threading.Event()
    watch.stall_seconds = 0.3

    def answers() -> Iterator[Summary]:
        yield summary()
        silent.wait(60)

    with pytest.raises(EngineError, match=r"nothing was committed for .* at 1 of 3 segments") as raised:
        watch.follow(answers())
    silent.set()
    assert "Last heard of: process 1 on machine-1 0 min ago" in str(raised.value)
    assert "alive machines: machine-1, machine-2; dead: machine-0; free: 8 of 8 CPUs" in str(raised.value)


def test_a_commit_of_anyone_is_progress(configure: Configure, watch: _Watch) -> None:
    watch.moved -= watch.stall_seconds + 60
    commit(configure("scores"), 1)
    watch.look()
    watch.expect_progress()
    watch.moved -= watch.stall_seconds + 60
    watch.look()
    with pytest.raises(EngineError, match=r"nothing was committed for 31\.\d minutes, at 2 of 3"):
        watch.expect_progress()


def test_a_cluster_that_gives_up_is_an_error_of_the_engine(watch: _Watch) -> None:
    def answers() -> Iterator[Summary]:
        yield summary()
        raise ConnectionResetError("the actor died")

    with pytest.raises(EngineError, match="Ray gave the run up: the actor died"):
        watch.follow(answers())


@pytest.mark.parametrize(
    ("run", "device", "gpus", "expected"),
    [
        ({}, "auto", 0, "2 workers of 1 CPU"),
        ({}, "auto", 8, "8 workers of 1 GPU and 1 CPU"),
        ({"gpus_per_worker": 4.0}, "auto", 8, "2 workers of 4 GPUs and 1 CPU"),
        ({"gpus_per_worker": 0.5}, "cuda", 1, "2 workers of 0.5 GPU and 1 CPU"),
        ({"threads": 4}, "cpu", 8, "2 workers of 4 CPUs"),
        ({"workers": 5}, "auto", 8, "5 workers of 1 GPU and 1 CPU"),
    ],
)
def test_a_worker_has_a_gpu_where_there_are_any(
    configure: Configure, run: dict[str, Any], device: str, gpus: float, expected: str
) -> None:
    config = configure(run={"engine": "ray", **run}, model={"device": device})
    config = replace(config, run=replace(config.run, threads=run.get("threads")))
    assert str(crew_of(pretended(gpus), config)) == expected.replace("0.5 GPU ", "0.5 GPUs ")


@pytest.mark.parametrize(
    ("run", "device", "message"),
    [
        ({}, "cuda", r"has 1 GPU and 1 CPU, .* the most on one machine: 4 CPUs, 0 GPUs\. Lower --gpus-per-worker"),
        ({"gpus_per_worker": 4.0}, "auto", "no machine of the Ray cluster has 4 GPUs and 1 CPU"),
        ({"threads": 5}, "cpu", "no machine of the Ray cluster has 5 CPUs"),
    ],
)
def test_a_worker_that_asks_for_what_no_machine_has_is_refused_where_none_is_added_by_itself(
    configure: Configure, run: dict[str, Any], device: str, message: str
) -> None:
    config = configure(run={"engine": "ray", "threads": 1, **run}, model={"device": device})
    with pytest.raises(EngineError, match=message):
        crew_of(pretended(), config)
    assert crew_of(pretended(labels={"ray.io/node-group": "gpu-workers"}), config).size >= 1


def test_gpus_and_cpus_of_a_worker_are_of_one_machine(configure: Configure) -> None:
    ray = pretended(gpus=8)
    ray.nodes()[1]["Resources"]["CPU"] = 0.0
    with pytest.raises(EngineError, match="no machine of the Ray cluster has 1 GPU and 1 CPU"):
        crew_of(ray, configure(run={"engine": "ray"}))


def test_a_run_that_no_machine_has_room_for_ends_after_the_minutes_that_were_allowed(configure: Configure) -> None:
    ray, config = pretended(), configure(run={"engine": "ray", "stall_minutes": 0.5})
    waited: list[float] = []
    cancelled: list[str] = []

    def never(_task: str, timeout: float) -> bytes:
        waited.append(timeout)
        raise TimeoutError

    ray.remote = lambda **_options: lambda _function: SimpleNamespace(remote=lambda *_config: "the task")
    ray.get, ray.cancel = never, lambda task, force: cancelled.append(task)
    with pytest.raises(EngineError, match=r"no machine had room for a worker of 1 CPU within 0\.5 minutes; alive"):
        _begin(ray, config, crew_of(ray, config))
    assert waited == [30.0]
    assert cancelled == ["the task"]


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a stand-in for Ray is asked to connect to, which it does not."""
    asked: list[str] = []

    def init(address: str, **_options: Any) -> None:
        asked.append(address)
        raise ConnectionError("no Ray")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace())
    return asked


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_an_address_where_nobody_listens_is_an_error_at_once(
    configure: Configure, addresses: list[str], listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    listener.close()
    for address in (f"127.0.0.1:{port}", f"[::1]:{port}", "127.0.0.1:99999"):
        config = configure(run={"engine": "ray", "ray_address": address})
        with pytest.raises(EngineError, match=r"no Ray cluster at .*: nobody answers there .* Check --ray-address"):
            cluster(config).__enter__()
    assert addresses == []


def test_other_addresses_are_for_ray_to_judge(
    configure: Configure, addresses: list[str], listener: socket.socket
) -> None:
    given = [f"127.0.0.1:{listener.getsockname()[1]}", "auto", "local", "ray://127.0.0.1:1", "nonsense"]
    for address in given:
        with pytest.raises(EngineError, match=r"no Ray cluster at .*: no Ray"):
            cluster(configure(run={"engine": "ray", "ray_address": address})).__enter__()
    assert addresses == given


def test_segments_that_were_compacted_are_there_without_their_commit_records(
    configure: Configure, watch: _Watch
) -> None:
    config = configure("scores")
    for index in (1, 2):
        commit(config, index)
    compact_segments(config.store.path)
    (Path(config.store.path) / "commits" / "000001.json").unlink()
    found = _Watch(pretended(), config, watch.begun, lambda _: None)
    assert found.committed == {0, 1, 2}


def test_gpus_for_workers_that_compute_on_the_cpu_are_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="gpus_per_worker would have no effect with the device 'cpu'"):
        crew_of(pretended(8), configure(run={"engine": "ray", "gpus_per_worker": 1}, model={"device": "cpu"}))


def test_workers_get_paths_that_hold_in_any_folder(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    config = configure()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    relative = replace(
        config, model=replace(config.model, path="model"), store=replace(config.store, path="new.gradsae")
    )
    whole = _with_whole_paths(relative)
    assert whole.model.path == str(tmp_path / "model")
    assert whole.store.path == str(tmp_path / "new.gradsae")
    by_name = replace(config, model=replace(config.model, path="google/gemma-2-2b"))
    assert _with_whole_paths(by_name).model.path == "google/gemma-2-2b"
