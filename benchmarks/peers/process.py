"""A variant as a process: a folder with the workload goes in, a folder with measures and maybe numbers comes out."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.meter import Measures
from benchmarks.peers.pairs import Pairs
from benchmarks.peers.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What one process is asked to do."""

    workload: Workload
    out: Path
    tuned: bool
    exact: bool  # numbers are wanted for the comparison: the engine stores them without rounding

    @property
    def stored(self) -> Path:
        """Where the variant keeps its results."""
        return self.out / "stored"

    def finish(self, measures: Measures, pairs: Pairs) -> None:
        """Write the measures and, where they are wanted, the numbers."""
        measures.save(self.out)
        if self.exact:
            pairs.save(self.out / "numbers.npz")


def read_job(arguments: list[str] | None = None) -> Job:
    """Parse `WORKLOAD OUT [--tuned] [--exact]`; OUT is made."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    return Job(workload=Workload.load(options.workload), out=options.out, tuned=options.tuned, exact=options.exact)
