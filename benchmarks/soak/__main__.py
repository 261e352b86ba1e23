"""Does an hour of extraction leave anything behind? Memory, handles, threads and temporary files, watched from outside.

    python -m benchmarks.soak --out benchmarks/results --minutes 60 --work FOLDER

from the root of the repository runs `benchmarks.soak.rounds` in one process for so long, looks at it every few seconds,
fits a line to each measure after a warm-up, and writes `<date>-soak.json`, `.md` and `.svg`. Exit status 1 where
something grows.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO

from benchmarks.soak.page import page
from benchmarks.soak.plot import to_svg
from benchmarks.soak.sample import Sample, look
from benchmarks.soak.trend import MEASURES, Trend, trend


def watch(folder: Path, *, seconds: float, every: float, documents: int, characters: int) -> list[Sample]:
    """Run the rounds, each of so much text, in a process of their own for so long, and sample it.

    Raises:
        RuntimeError: it failed; what it said is on this process's standard error.
    """
    (folder / "tmp").mkdir()
    numbers = map(str, (seconds, documents, characters))
    command = [sys.executable, "-m", "benchmarks.soak.rounds", str(folder), *numbers]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    started = time.monotonic()
    samples: list[Sample] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        last = _Last(process.stdout)
        while process.poll() is None:
            time.sleep(every)
            state = last.state
            if state is None:  # it is still importing
                continue
            try:
                samples.append(look(process.pid, folder, seconds=time.monotonic() - started, **state))
            except (OSError, KeyError):  # it ends just now: an ended process has no memory to tell of
                break
    if process.returncode != 0:
        raise RuntimeError(f"the process that was watched failed with status {process.returncode}")
    return samples


class _Last:
    """The last line of JSON that came out of a pipe."""

    def __init__(self, pipe: IO[str]) -> None:
        self.state: dict[str, int] | None = None
        self._pipe = pipe
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._pipe:
            self.state = json.loads(line)


def write_results(out: Path, samples: list[Sample], trends: list[Trend], machine: str, warm_up: float) -> None:
    """Write the three files of today."""
    date = time.strftime("%Y-%m-%d")
    stem = out / f"{date}-soak"
    numbers = [asdict(found) | {"verdict": found.verdict} for found in trends]
    document = {
        "machine": machine,
        "warm_up_seconds": warm_up,
        "trends": numbers,
        "samples": [asdict(sample) for sample in samples],
    }
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    stem.with_suffix(".svg").write_text(to_svg(samples, trends, warm_up), encoding="utf-8")
    text = page(samples, trends, machine=machine, date=date, warm_up=warm_up)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Watch, fit, write; exit status 1 where a measure grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder on the disk in question (default: where temporary files go)")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, help="minutes that are not judged; default: a sixth of them all")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--documents", type=int, default=10, help="speeches of the demo in a round")
    parser.add_argument("--characters", type=int, default=1_000_000, help="of each speech at most")
    options = parser.parse_args()
    warm_up = 60 * (options.minutes / 6 if options.warm_up is None else options.warm_up)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        samples = watch(
            Path(folder),
            seconds=60 * options.minutes,
            every=options.every,
            documents=options.documents,
            characters=options.characters,
        )
    trends = [trend(measure, samples, warm_up) for measure in MEASURES]
    write_results(options.out, samples, trends, _machine(), warm_up)
    if any(found.verdict == "grows" for found in trends):
        raise SystemExit(1)


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy", "numcodecs"))
    what = "one thread, the demo's model and SAE"
    return f"{platform.platform()}, Python {platform.python_version()}, {versions}; {what}."


if __name__ == "__main__":
    main()
