"""A Ray cluster for the length of a run: connected to, or started on this machine; and what room it has for workers."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ConfigError, EngineError

_ANSWER_SECONDS = 10.0  # for a connection to host:port
_NODE_GROUP = "ray.io/node-group"  # the label of machines that an autoscaler or KubeRay starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """How many workers, and what each of them has."""

    size: int
    gpus: float
    cpus: int

    @property
    def each(self) -> str:
        """What one worker has."""
        gpus = f"{self.gpus:g} GPU{'s' * (self.gpus != 1)} and " if self.gpus else ""
        return f"{gpus}{self.cpus} CPU{'s' * (self.cpus != 1)}"

    def __str__(self) -> str:
        return f"{self.size} worker{'s' * (self.size != 1)} of {self.each}"


@contextmanager
def cluster(config: ExtractConfig) -> Iterator[Any]:
    """Give the module `ray`, connected to a cluster; it is left again, and one that was started here is ended.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("the engine 'ray' needs Ray: pip install 'gradsae-fast[ray]'.") from error
    if ray.is_initialized():  # by the caller, who keeps it
        yield ray
        return
    address = config.run.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        wanted = (config.run.workers or 1) * (config.run.threads or 1)
        options |= {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, wanted)}
    try:
        _expect_listener(address)
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise EngineError(f"no Ray cluster at {address!r}: {error}. Check --ray-address or RAY_ADDRESS.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _expect_listener(address: str) -> None:
    """Raise a ConnectionError where nobody listens at host:port, which Ray by itself tries for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nobody answers there ({error})") from error


def crew_of(ray: Any, config: ExtractConfig) -> Crew:
    """Settle how many workers there are and what each of them has, from the configuration and what the cluster has.

    Raises:
        ConfigError: GPUs for workers that compute on the CPU.
        EngineError: no machine has what a worker is to have, and nothing says that one may be added by itself.
    """
    run, device = config.run, config.model.device
    there = ray.cluster_resources()
    gpus = run.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and there.get("GPU", 0) >= 1) else 0.0
    if gpus and device == "cpu":
        raise ConfigError("gpus_per_worker would have no effect with the device 'cpu'. Leave one of them out.")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    room = int(there.get("GPU", 0) // gpus) if gpus else len(nodes)
    crew = Crew(size=run.workers or max(1, room), gpus=gpus, cpus=run.threads or 1)
    if not any(_NODE_GROUP in node.get("Labels", {}) for node in nodes):
        _expect_room(crew, [node["Resources"] for node in nodes])
    return crew


def _expect_room(crew: Crew, machines: Sequence[Mapping[str, float]]) -> None:
    """Refuse what no machine has, for which Ray would wait for ever."""
    cpus, gpus = ([machine.get(name, 0) for machine in machines] for name in ("CPU", "GPU"))
    if not any(of_cpus >= crew.cpus and of_gpus >= crew.gpus for of_cpus, of_gpus in zip(cpus, gpus, strict=True)):
        raise EngineError(
            f"no machine of the Ray cluster has {crew.each}, which a worker is to have; the most on one machine: "
            f"{max(cpus, default=0):g} CPUs, {max(gpus, default=0):g} GPUs. Lower --gpus-per-worker or --threads, use "
            "--device cpu, or add such a machine; then run the same command again."
        )


def describe(ray: Any) -> str:
    """Say which machines the cluster has and what of them is free."""
    alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
    dead = [node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]]
    free, there = ray.available_resources(), ray.cluster_resources()
    room = ", ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    return f"alive machines: {', '.join(alive) or 'none'}; dead: {', '.join(dead) or 'none'}; free: {room}"


@contextmanager
def quiet(ray: Any) -> Iterator[None]:
    """Keep Ray Data's bars and messages away from this run's own."""
    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = (context.enable_progress_bars, context.print_on_execution_start, logger.level)
    context.enable_progress_bars, context.print_on_execution_start = False, False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start, level = before
        logger.setLevel(level)
