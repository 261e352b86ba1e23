"""A Ray cluster for the length of a run: connected to, or started on this machine; and what room it has for workers."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ConfigError, EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """How many workers, and what each of them has."""

    size: int
    gpus: float
    cpus: int

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU{'s' * (self.gpus != 1)} and " if self.gpus else ""
        return f"{self.size} worker{'s' * (self.size != 1)} of {gpus}{self.cpus} CPU{'s' * (self.cpus != 1)}"


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
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise EngineError(f"no Ray cluster at {address!r}: {error}. Check --ray-address or RAY_ADDRESS.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def crew_of(ray: Any, config: ExtractConfig) -> Crew:
    """Settle how many workers there are and what each of them has, from the configuration and what the cluster has."""
    run, device = config.run, config.model.device
    there = ray.cluster_resources()
    gpus = run.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and there.get("GPU", 0) >= 1) else 0.0
    if gpus and device == "cpu":
        raise ConfigError("gpus_per_worker would have no effect with the device 'cpu'. Leave one of them out.")
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    room = int(there.get("GPU", 0) // gpus) if gpus else nodes
    return Crew(size=run.workers or max(1, room), gpus=gpus, cpus=run.threads or 1)


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
