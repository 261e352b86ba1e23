"""The GPU proof: tests, kernel table, extraction and plot by one command, in less than nine minutes.

    python -m benchmarks.gpu --out benchmarks/results

from the root of the repository, on a machine with a CUDA device, writes `<date>-<device>.json` and `.md` (and `.png`
where matplotlib is there). Needs no network and no data: random operands, and the demo's model for the extraction. It
keeps its own deadline: what no longer fits is left out, and the result says so. Everything that touches the device runs
in a process of its own, so that a kernel that kills its process costs one line. The exit status is 1 if a test failed
or one of our kernels raised or answered wrongly. `--device cpu --small` runs the same code on tiny shapes, to try it.

    python -m benchmarks.gpu --only end_to_end --out benchmarks/results

wants the whole of the time and is run for itself: the engine beside the bare model, in the sizes of real models with
random weights. It writes `<date>-<device>-end-to-end.json` and `.md`, after each case.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.end_to_end.page import summary
from benchmarks.gpu.machine import slug
from benchmarks.gpu.page import page
from benchmarks.gpu.plot import draw
from benchmarks.gpu.progress import Progress
from benchmarks.gpu.row import Row, Status
from benchmarks.gpu.shape import FULL, SMALL

ROOT = Path(__file__).parents[2]
SECTIONS = ("tests", "table", "extraction")
END_TO_END = "end_to_end"
NOT_ASKED = "left out, as asked for"
WRITE_SECONDS = 15.0  # kept for the plot and the files
TESTS_SHARE = 0.3  # of the time, at most
EXTRACTION_SECONDS = 60.0
GRACE_SECONDS = 10.0  # between the end of a process's own deadline and its being killed
MOST_STARTS = 8
MOST_NAMES = 10  # of failed tests


def run_tests(options: argparse.Namespace, deadline: Deadline) -> str:
    """`pytest -m gpu -q`, and its last line."""
    if options.device == "cpu":
        return "skipped: they need a CUDA device"
    command = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    if find_spec("xdist"):  # most of the time goes into compiling
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    share = 1.0 if options.only == "tests" else TESTS_SHARE
    status, output = run(command, share * deadline.left() - WRITE_SECONDS)
    last = next((line.strip("= ") for line in reversed(output.splitlines()) if line.strip()), "no output")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    words = {0: "passed", 5: "none found", None: "cut off by the deadline"}
    return f"{words.get(status, f'FAILED, exit status {status}')}; {'; '.join([last, *failed[:MOST_NAMES]])}"


def measure_table(options: argparse.Namespace, deadline: Deadline, progress: Progress) -> str:
    """Start measuring processes until all shapes are done, the time is up, or they die too often."""
    shapes = SMALL if options.small else FULL
    kept = 0.0 if options.small or options.only else EXTRACTION_SECONDS
    for _ in range(MOST_STARTS):
        seconds = deadline.left() - WRITE_SECONDS - GRACE_SECONDS - kept
        if all(progress.is_done(shape) for shape in shapes) or seconds < GRACE_SECONDS:
            break
        command = ["-m", "benchmarks.gpu.table", f"--device={options.device}", f"--seconds={seconds}"]
        command += [f"--progress={progress.path}", *(["--small"] if options.small else [])]
        status, output = run(command, seconds + GRACE_SECONDS)
        if status is None:
            break
        if status != 0:
            progress.blame(shapes, f"the process died with status {status}: {last_line(output)}")
    for shape in shapes:
        if not progress.is_done(shape):
            progress.give_up(shape, Status.SKIPPED, "the time was up, or measuring processes died too often")
    counts = {status: sum(row.status is status for row in progress.rows()) for status in Status}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def run_extraction(options: argparse.Namespace, deadline: Deadline) -> str:
    """The end-to-end benchmark on the demo's model and text, as it prints itself; on the device that it chooses."""
    if options.small:
        return "skipped: a small run"
    if not deadline.fits(EXTRACTION_SECONDS + WRITE_SECONDS):
        return f"skipped: {deadline.left():.0f} s were left"
    status, output = run([str(ROOT / "benchmarks" / "bench_extract.py")], deadline.left() - WRITE_SECONDS)
    if status != 0:
        return f"{'cut off by the deadline' if status is None else 'FAILED'}: {last_line(output)}"
    cells = [" ".join(line.strip("| ").split("|")) for line in output.splitlines() if line.startswith("| ")]
    return "; ".join(re.sub(r"\s+", " ", cell) for cell in cells)


def measure_end_to_end(options: argparse.Namespace, deadline: Deadline) -> int:
    """Start measuring processes until one comes to its end or the time is up; 0 if nothing of ours failed."""
    command = ["-m", "benchmarks.gpu.end_to_end", f"--device={options.device}", f"--out={options.out}"]
    command += [f"--commit={options.commit or commit()}", *(["--small"] if options.small else [])]
    command += [
        f"--sae-dtype={options.sae_dtype}",
        *([f"--attention={options.attention}"] if options.attention else []),
    ]
    path: Path | None = None
    for start in range(MOST_STARTS):
        seconds = deadline.left() - GRACE_SECONDS
        arguments = [*command, f"--seconds={seconds}", *(["--resume"] if start else [])]
        status, output = run(arguments, seconds + GRACE_SECONDS)
        path = next((Path(line) for line in output.splitlines() if line.endswith("-end-to-end.json")), path)
        if status in (0, None) or not deadline.fits(2 * GRACE_SECONDS):
            break
    if path is None or not path.exists():
        print("nothing was measured", file=sys.stderr)
        return 1
    result = json.loads(path.read_text(encoding="utf-8"))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(summary(result))
    return int(any(values["state"] in ("wrong", "failed") for values in result["cases"]) or status not in (0, None))


def run(arguments: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status (None: killed when its time was up) and output of a Python process in the repository's root."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:  # a pipe would wait for a killed child's children
        try:
            status: int | None = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no pool that outlives its process
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, seconds),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
        output.seek(0)
        text = output.read()
    if status not in (0, 5):
        print(text[-4000:], file=sys.stderr)
    return status, text


def last_line(output: str) -> str:
    """The last line with something on it."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")[:300]


def commit() -> str:
    """Of the checkout, and whether files differ from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return head.stdout.strip() + (" and uncommitted changes" if changed.stdout.strip() else "")


def write(result: dict[str, Any], rows: list[Row], folder: Path) -> Path:
    """The files of a result; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = result["machine"] or {}
    stem = folder / f"{result['date']}-{slug(str(machine.get('device', result['asked_for'])))}"
    result["sections"]["plot"] = draw(rows, Path(f"{stem}.png"))
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Path(f"{stem}.md").write_text(page(result), encoding="utf-8")
    return Path(f"{stem}.md")


def main() -> int:
    """Run the sections in order of weight; 0 if nothing of ours failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the command")
    parser.add_argument("--only", choices=[*SECTIONS, END_TO_END], help="one section, with all the time")
    parser.add_argument("--attention", help="of the models of end_to_end; left out: what transformers takes")
    parser.add_argument("--sae-dtype", choices=["bf16", "fp32"], default="bf16", help="of the SAEs of end_to_end")
    parser.add_argument("--seconds", type=float, default=530.0, help="the time for everything")
    parser.add_argument("--commit", help="what to write as the commit where the checkout has no .git")
    options = parser.parse_args()
    deadline = Deadline(options.seconds)
    if options.only == END_TO_END:
        return measure_end_to_end(options, deadline)
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(Path(folder) / "progress")
        sections = dict.fromkeys(SECTIONS, NOT_ASKED)
        if options.only in (None, "tests"):
            sections["tests"] = run_tests(options, deadline)
        if options.only in (None, "table"):
            sections["table"] = measure_table(options, deadline, progress)
        if options.only in (None, "extraction"):
            sections["extraction"] = run_extraction(options, deadline)
        rows = progress.rows()
        result = {
            "date": date.today().isoformat(),
            "commit": options.commit or commit(),
            "asked_for": f"{options.device}{f' {options.only}' if options.only else ''}",
            "machine": next(iter(progress.events("machine")), None),
            "rates": next(iter(progress.events("rates")), None),
            "sections": sections,
            "rows": [row.as_json() for row in rows],
        }
    print(write(result, rows, options.out).read_text(encoding="utf-8"))
    wrong = any(row.status in (Status.FAILED, Status.WRONG) for row in rows)
    return int(wrong or any("FAILED" in text for text in sections.values()))


if __name__ == "__main__":
    sys.exit(main())
