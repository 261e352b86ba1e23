"""The commands that are interrupted, by name, each with what it starts from made in a folder."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.durability.everything import write_everything
from benchmarks.durability.growing import append, merge, workers
from benchmarks.durability.revising import compact, drop
from benchmarks.durability.scenario import Scenario, extraction
from benchmarks.durability.small_run import Acknowledge, write_all
from gradsae_fast.store import repair


def scenario_of(name: str, folder: Path) -> Scenario:
    """Make the scenario of this name; what it starts from is written below `folder`."""
    return COMMANDS[name](folder)


def _extract(folder: Path) -> Scenario:
    return extraction(is_real=True)


def _protocol(folder: Path) -> Scenario:
    """As `extract`, with little in each segment: for where every step counts and not what it carries."""
    return extraction(is_real=False)


def _sidecars(folder: Path) -> Scenario:
    """Exact effects, what decoder rows say, and the index, onto a complete store."""
    before = folder / "before-sidecars"
    write_all(before)
    return Scenario(name="sidecars", before=before, act=write_everything)


def _repair(folder: Path) -> Scenario:
    """A store whose first segment, exact effects and dictionary are damaged is repaired and written again."""
    before = folder / "before-repair"
    write_everything(before)
    for pattern in ("segments/000000-*/sites/*/by_token/indices/c.0", "exact/segments/000002-*/**/c.0"):
        damaged = sorted(before.glob(pattern))[0]
        damaged.write_bytes(damaged.read_bytes()[:-1])
    return Scenario(name="repair", before=before, act=_repair_and_write, promise="heals")


def _repair_and_write(store: Path, acknowledge: Acknowledge) -> None:
    repair(store)
    write_everything(store, acknowledge)


# Each makes what it starts from below a folder.
COMMANDS: dict[str, Callable[[Path], Scenario]] = {
    "extract": _extract,
    "protocol": _protocol,
    "sidecars": _sidecars,
    "repair": _repair,
    "workers": workers,
    "append": append,
    "merge": merge,
    "drop": drop,
    "compact": compact,
}
