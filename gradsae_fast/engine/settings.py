"""What an engine can do, checked before anything is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ConfigError
from gradsae_fast.model.objectives import ObjectiveFunction

_OF_RAY = ("workers", "gpus_per_worker", "ray_address", "stall_minutes")


def check_engine(
    config: ExtractConfig, objectives: Mapping[str, ObjectiveFunction] | None, documents: Iterable[Any] | None
) -> None:
    """Refuse what the engine cannot do, and settings that would have no effect.

    Raises:
        ConfigError: names the setting and what to do.
    """
    run = config.run
    for name in _OF_RAY if run.engine != "ray" else ():
        if getattr(run, name) is not None:
            raise ConfigError(
                f"{name} would have no effect with the engine {run.engine!r}; expected it with --engine ray alone."
            )
    for name in ("workers", "gpus_per_worker", "stall_minutes"):
        value = getattr(run, name)
        if value is not None and value <= 0 and (name, value) != ("gpus_per_worker", 0):
            raise ConfigError(f"{name} is {value}; expected a number above 0.")
    if run.engine == "local":
        return
    for what, given in (("objectives", objectives), ("documents", documents)):
        if given is not None:
            raise ConfigError(
                f"{what} of your own cannot be sent to the workers of the engine {run.engine!r}, which have the "
                "configuration alone. Use the engine 'local', or write the documents to a file that all workers see."
            )
    if run.exact_dense is not None:
        raise ConfigError(
            f"exact_dense needs a complete store, which no worker of the engine {run.engine!r} has by itself. Run "
            "without it, then the same command with --engine local and --exact-dense: it measures, and scores nothing."
        )
    if run.trace:
        raise ConfigError(f"a profile is of one process; run with --engine local, not {run.engine!r}, to get one.")
    if run.engine == "ray" and config.model.device.startswith("cuda:"):
        raise ConfigError(
            f"device is {config.model.device!r}, but Ray says which GPU a worker has; expected auto, cuda or cpu."
        )
