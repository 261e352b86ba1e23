"""Runs on many machines that are lost, killed, wrong or silent: are their bytes those of one process, undisturbed?

    python -m benchmarks.many_machines --out benchmarks/results

from the root of the repository writes `<date>-many-machines.json` and `.md`. The machines are nodes of a Ray cluster,
all on this one. Needs `.[ray]`.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.many_machines.drive import configuration
from benchmarks.many_machines.trials import TRIALS, Trial, carry_out, machines
from gradsae_fast import open_scores
from gradsae_fast.demo import ASSETS
from gradsae_fast.extract import extract

_CHARACTERS = 1500  # of each speech


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One trial: what happened, what was seen on the way, and what does not hold."""

    what: str
    seen: tuple[str, ...]
    seconds: float
    faults: tuple[str, ...]


def write_corpus(folder: Path) -> None:
    """The beginnings of the demo's speeches."""
    rows = [json.loads(line) for line in (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    shorter = [json.dumps({**row, "text": row["text"][:_CHARACTERS]}) + "\n" for row in rows]
    (folder / "speeches.jsonl").write_text("".join(shorter), encoding="utf-8")


def measure(work: Path, name: str, expected: list[str]) -> Line:
    """Do one trial on machines of its own."""
    folder = work / name.replace(" ", "-").replace("'", "").replace(",", "")
    folder.mkdir()
    write_corpus(folder)
    with machines() as (cluster, nodes):
        trial = Trial(name=name, folder=folder, cluster=cluster, nodes=nodes)
        faults = carry_out(trial, expected)
    return Line(what=name, seen=tuple(trial.seen), seconds=trial.seconds, faults=tuple(faults))


def page(lines: list[Line], num_segments: int, machine: str, date: str) -> str:
    """The table as Markdown."""
    rows = [
        f"| {line.what} | {'; '.join(line.seen)} | {line.seconds:.0f} | {len(line.faults) or 'equal'} |"
        for line in lines
    ]
    table = ["| what happens | | seconds | bytes of an undisturbed run |", "|---|---|---|---|", *rows]
    found = [f"- {fault}" for line in lines for fault in line.faults]
    head = f"{machine}\nTwo workers, {num_segments} segments; seconds with the drivers' starts."
    return "\n".join([f"# Runs on many machines: {date}", "", head, "", *table, "", *found]) + "\n"


def main() -> None:
    """Do the trials and write the two files; exit status 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", choices=TRIALS, action="append", help="trials; default: all")
    options = parser.parse_args()
    date = time.strftime("%Y-%m-%d")
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch"))
    machine = f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}."
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        extract(configuration(Path(folder)))
        expected = [segment.digest for segment in open_scores(Path(folder) / "scores").segments]
        for name in options.only or TRIALS:
            line = measure(Path(folder), name, expected)
            print(f"{name}: {'; '.join(line.seen)} ({line.seconds:.0f} s): {', '.join(line.faults) or 'equal bytes'}")
            lines.append(line)
            document = {"machine": machine, "num_segments": len(expected), "lines": [asdict(one) for one in lines]}
            path = options.out / f"{date}-many-machines"
            path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(page(lines, len(expected), machine, date), encoding="utf-8")
    if any(line.faults for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
