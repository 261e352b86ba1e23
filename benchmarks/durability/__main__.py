"""How much a store survives: writers killed, power cut, files damaged; trials and violations, with the date.

    python -m benchmarks.durability --out benchmarks/results
    python -m benchmarks.durability --out benchmarks/results --kills 300 --clones 500 --flips 500 --cuts 500 --heals 20

from the root of the repository writes `<date>-durability.json` and `.md`. Everything happens below --work, a folder on
the disk in question (default: where temporary files go).
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.durability.corruption import Outcome, cut_short, flip_bits, remove_and_exchange
from benchmarks.durability.power_loss import cut_power


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind of trial. Without a violation in n trials, the rate is below 3 / n with 95 % confidence."""

    what: str
    trials: int
    violations: tuple[str, ...]
    seconds: float


def measure(work: Path, options: argparse.Namespace) -> Iterator[Line]:
    """Do the trials that the options ask for, each kind in a folder of its own."""
    kills = [sys.executable, "-m", "benchmarks.durability.kills"]
    for what, arguments in {
        "SIGKILL at a random moment": ["random", _new(work, "kills"), str(options.kills), str(options.seed)],
        "SIGKILL before every step on the disk": ["steps", _new(work, "steps")],
    }.items():
        started = time.perf_counter()
        printed = subprocess.run([*kills, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()
        yield _line(what, int(printed[0].split()[0]), printed[1:], started)
    started = time.perf_counter()
    power = cut_power(Path(_new(work, "power")), options.clones, options.seed)
    yield _line("power cut", power.clones, power.violations, started)
    harms: dict[str, Callable[[Path], Outcome]] = {
        "flipped": lambda folder: flip_bits(folder, options.flips, options.seed),
        "cut": lambda folder: cut_short(folder, options.cuts, options.seed),
        "healed": lambda folder: remove_and_exchange(folder, options.heals, options.seed),
    }
    for name, harm in harms.items():
        started = time.perf_counter()
        outcome = harm(Path(_new(work, name)))
        for number, (what, trials) in enumerate(outcome.trials.items()):
            yield _line(what, trials, () if number else outcome.violations, started)


def _new(work: Path, name: str) -> str:
    (work / name).mkdir()
    return str(work / name)


def _line(what: str, trials: int, violations: object, started: float) -> Line:
    assert isinstance(violations, list | tuple)
    return Line(what=what, trials=trials, violations=tuple(violations), seconds=time.perf_counter() - started)


def page(lines: list[Line], machine: str, date: str) -> str:
    """The table as Markdown."""
    rows = [
        f"| {line.what} | {line.trials:,} | {len(line.violations)} | {3 / line.trials:.1e} |"
        for line in lines
        if line.trials
    ]
    found = [f"- {violation}" for line in lines for violation in line.violations]
    table = ["| | trials | violations | rate below (95 %), where none |", "|---|---|---|---|", *rows]
    return "\n".join([f"# What a store survives: {date}", "", machine, "", *table, "", *found]) + "\n"


def main() -> None:
    """Do the trials and write the two files; exit status 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder in which stores are written and damaged")
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--clones", type=int, default=2_000)
    parser.add_argument("--flips", type=int, default=5_000)
    parser.add_argument("--cuts", type=int, help="default: every shorter length of a file of every kind")
    parser.add_argument("--heals", type=int, help="kinds of files; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    date = time.strftime("%Y-%m-%d")
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numcodecs"))
    lines = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        disk = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
        machine = f"{platform.platform()}, {disk.strip()}, Python {platform.python_version()}, {versions}."
        for line in measure(Path(folder), options):
            print(f"{line.what}: {line.trials} trials, {len(line.violations)} violations, {line.seconds:.0f} s")
            lines.append(line)
    document = {
        "machine": machine,
        "lines": [asdict(line) for line in lines],
    }
    path = options.out / f"{date}-durability"
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(lines, machine, date), encoding="utf-8")
    if any(line.violations for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
