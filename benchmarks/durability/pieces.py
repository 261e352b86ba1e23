"""The trials in pieces of some minutes, so that a run that is stopped goes on with the next piece.

A piece is a kind of trial, a seed and a number; each has a line for every sort of thing that it did.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.durability.commands import COMMANDS, scenario_of
from benchmarks.durability.corruption import cut_short, flip_bits, remove_and_exchange
from benchmarks.durability.outcome import Outcome
from benchmarks.durability.power_loss import cut_power
from gradsae_fast.store.promise import file_system

_KILLS, _CLONES, _FLIPS, _PARTS = 500, 250, 500, 10  # of a piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a piece did of one sort. Without a violation in n trials, the rate is below 3 / n with 95 % confidence."""

    kind: str
    seed: int
    what: str
    trials: int
    violations: tuple[str, ...]
    seconds: float  # of the whole piece
    code: str  # digest of the store's sources that were tried
    disk: str  # type of the file system


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One kind of trial with one seed, to be done in an empty folder."""

    kind: str
    seed: int
    do: Callable[[Path], Outcome]


def pieces(options: Namespace) -> Iterator[Piece]:
    """The pieces that the options ask for, the longest kinds cut up."""
    for name in COMMANDS:
        first, others = name == "extract", name not in ("extract", "protocol")
        if first or others:
            yield from _cut(f"kills-{name}", options.kills if first else options.verb_kills, _KILLS, _kill, name)
        if others or name == "protocol":
            yield Piece(kind=f"steps-{name}", seed=0, do=partial(_steps, name, options.stride if others else 1))
            clones = options.verb_clones if others else options.clones
            yield from _cut(f"power-{name}", clones, _CLONES, _cut_power, name)
    yield from _cut("flips", options.flips, _FLIPS, lambda count, seed, folder: flip_bits(folder, count, seed))
    for part in range(_PARTS if options.cuts is None else 1):
        share = (part, _PARTS if options.cuts is None else 1)
        yield Piece(kind="cuts", seed=part, do=partial(_cut_files, share, options.cuts))
    yield Piece(kind="heals", seed=0, do=lambda folder: remove_and_exchange(folder, options.heals))


def _cut(kind: str, total: int, most: int, do: Callable[..., Outcome], *first: str) -> Iterator[Piece]:
    """Pieces of at most so many trials each, with seeds 0, 1, 2 …"""
    for seed, start in enumerate(range(0, total, most)):
        yield Piece(kind=kind, seed=seed, do=partial(do, *first, min(most, total - start), seed))


def _kill(name: str, kills: int, seed: int, folder: Path) -> Outcome:
    return _in_child(f"SIGKILL at a random moment: {name}", "random", str(folder), name, str(kills), str(seed))


def _steps(name: str, stride: int, folder: Path) -> Outcome:
    which = "every step" if stride == 1 else f"every {stride}th step"
    return _in_child(f"SIGKILL before {which} on the disk: {name}", "steps", str(folder), name, str(stride), "0")


def _in_child(what: str, *arguments: str) -> Outcome:
    """Kill in a process that has no threads, as it forks."""
    command = [sys.executable, "-m", "benchmarks.durability.kills", *arguments]
    first, *violations = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return Outcome(trials={what: int(first.split()[0])}, violations=violations)


def _cut_power(name: str, clones: int, seed: int, folder: Path) -> Outcome:
    power = cut_power(scenario_of(name, folder), folder, clones, seed)
    return Outcome(trials={f"power cut: {name}": power.clones}, violations=list(power.violations))


def _cut_files(share: tuple[int, int], most: int | None, folder: Path) -> Outcome:
    return cut_short(folder, share, most)


def carry_out(piece: Piece, work: Path | None, code: str) -> list[Line]:
    """Do a piece in a new folder below `work`."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        disk = file_system(Path(folder))
        outcome = piece.do(Path(folder))
    seconds = time.perf_counter() - started
    return [
        Line(
            kind=piece.kind,
            seed=piece.seed,
            what=what,
            trials=trials,
            violations=() if number else tuple(outcome.violations),
            seconds=seconds,
            code=code,
            disk=disk,
        )
        for number, (what, trials) in enumerate(outcome.trials.items())
    ]


def read_lines(path: Path) -> list[Line]:
    """The lines of a file of results; none where there is no file yet."""
    if not path.exists():
        return []
    lines = json.loads(path.read_text(encoding="utf-8"))["lines"]
    return [Line(**{**line, "violations": tuple(line["violations"])}) for line in lines]


def write_lines(path: Path, lines: list[Line], machine: str) -> None:
    """Write all lines; a run that is stopped meanwhile leaves the file as it was or as it will be."""
    document = {"machine": machine, "lines": [asdict(line) for line in lines]}
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
