"""Children of `test_hostile_disks`: each function is run in a process of its own, and what it returns is its report.

    python -m tests.store.hostile_child full_disks /folder/to/work/in

A child may mount small disks (it is started in a mount namespace of its own), give up root, be stopped or be killed.
The store has four small segments, a dictionary and a sidecar; `fingerprint` is all of it but who wrote it and when.
"""

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from gradsae_fast.errors import BusyError, GradsaeError, StoreError
from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreWriter, open_scores, verify
from gradsae_fast.store import writer as writer_module
from gradsae_fast.store.arrays import encoding as encoding_module
from gradsae_fast.store.changes.drop import drop_documents
from gradsae_fast.store.changes.merge import merge_segments
from gradsae_fast.store.places import durable
from gradsae_fast.store.places.durable import read_document
from gradsae_fast.store.records import commits as commits_module
from gradsae_fast.store.records.commits import read_record
from gradsae_fast.store.sidecars.dictionary import dictionary_record
from tests.store.synthetic import IDENTITY, SITE, make_segment

NUM_SEGMENTS = 4
NOBODY = 65534
DONE, BUSY, FAILED = 0, 3, 4

Told = Callable[[int], object]


def ignore(index: int) -> None:
    """A `Told` that nobody listens to."""


def write_all(store: Path, told: Told = ignore, *, shared: bool = False) -> None:
    """Write the store, or what is missing of it; `told` of each segment written."""
    run: dict[str, Any] = {"process": os.getpid()}
    settings: dict[str, Any] = {"run": run, "identity": IDENTITY, "num_segments": NUM_SEGMENTS, "shared": shared}
    with ScoreWriter.create_or_resume(store, **settings) as writer:
        writer.write_dictionary(["a", "b"], {SITE: np.ones(16, np.float32)})
        if writer.facts("gate") is None:
            writer.write_facts("gate", {"passed": True})
        for index in sorted(set(range(NUM_SEGMENTS)) - writer.committed):
            writer.write(make_segment(index, num_tokens=12, num_documents=2, num_latents=16))
            told(index)


def fingerprint(store: Path) -> list[Any]:
    """Digests of everything that must not depend on who wrote it, when and how often it was interrupted."""
    opened = open_scores(store)
    opened.check_objects()
    run = {name: value for name, value in read_document(store / "run.json").items() if name not in ("run", "checksum")}
    dictionary = read_record(dictionary_record(store)).digest
    return [[segment.digest for segment in opened.segments], run, dictionary, opened.facts("gate")]


def committed(store: Path) -> list[int]:
    """The segments that a reader sees, each whole; none of a store that was not begun."""
    if not (store / "run.json").exists():
        return []
    opened = open_scores(store)
    opened.check_objects()
    return [segment.index for segment in opened.segments]


def leftovers(store: Path) -> list[str]:
    """Temporary files, and folders that no record names."""
    named = {read_record(path).folder for path in (store / "commits").iterdir()}
    folders = {f"segments/{path.name}" for path in (store / "segments").iterdir()} - named
    return sorted([*folders, *(str(path.relative_to(store)) for path in store.rglob(".tmp-*"))])


def attempt(store: Path) -> str | None:
    """Write, and return the error's sentence, or None where it was written to the end."""
    try:
        write_all(store)
    except GradsaeError as error:
        return str(error)
    return None


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs with these options, in this process's mount namespace."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def full_disks(work: Path) -> Any:
    """Disks of 20 sizes, from one that holds nothing to one that holds all."""
    return _too_small(work, [f"size={size}k" for size in range(16, 2400, 125)], "size=64m")


def few_inodes(work: Path) -> Any:
    """Disks on which only so many files can be made."""
    return _too_small(work, [f"size=64m,nr_inodes={number}" for number in range(4, 700, 58)], "size=64m,nr_inodes=0")


def _too_small(work: Path, kinds: list[str], enough: str) -> list[dict[str, Any]]:
    write_all(work / "reference")
    found = []
    for options in kinds:
        with small_disk(work / "disk", options) as disk:
            store = disk / "scores"
            error = attempt(store)
            before = committed(store)
            faults = [str(fault) for fault in verify(store)] if before else []
            subprocess.run(["mount", "-o", f"remount,{enough}", disk], check=True, capture_output=True)
            again = attempt(store)
            same = fingerprint(store) == fingerprint(work / "reference")
            found.append(
                {
                    "options": options,
                    "error": error,
                    "committed": before,
                    "faults": faults,
                    "again": again,
                    "same": same,
                    "leftovers": leftovers(store),
                }
            )
    return found


def read_only_disk(work: Path) -> Any:
    """A complete and an incomplete store on a disk that is mounted read-only: one can be read, neither written."""
    with small_disk(work / "disk", "size=64m") as disk:
        write_all(disk / "whole")
        with contextlib.suppress(InterruptedError):
            write_all(disk / "part", _stop_after(1))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, capture_output=True)
        return {
            "faults": [str(fault) for fault in verify(disk / "whole")],
            "read": len(fingerprint(disk / "whole")[0]),
            "errors": [attempt(disk / name) for name in ("whole", "part", "new")],
        }


def _stop_after(last: int) -> Told:
    def told(index: int) -> None:
        if index == last:
            raise InterruptedError

    return told


def lost_permission(work: Path) -> Any:
    """Folders that a user without root's rights may not write to, from the start or from the midst of a segment on."""
    write_all(work / "reference")  # warm: nothing is imported once root's rights are gone
    os.chdir(work)
    _become_nobody(work)
    found = []
    for name in ("", "commits", "segments", "facts", "dictionary"):
        store = Path(f"start-{name or 'store'}")
        with contextlib.suppress(InterruptedError):
            write_all(store, _stop_after(0))
        (store / name).chmod(0o555)
        found.append(_mended(store, store / name, attempt(store)))
    for number in (3, 40, 200, 300):
        store = Path(f"midst-{number}")
        with _permission_goes_at(store, number) as taken:
            error = attempt(store)
        found.append(_mended(store, taken[0], error))
    return found


def _mended(store: Path, folder: Path, error: str | None) -> dict[str, Any]:
    before = committed(store) if os.access(store, os.R_OK) else None
    if folder.exists():  # an empty one was deleted with its attempt
        folder.chmod(0o755)
    again = attempt(store)
    same = fingerprint(store) == fingerprint(Path("reference"))
    return {"store": str(store), "error": error, "committed": before, "again": again, "same": same}


@contextlib.contextmanager
def _permission_goes_at(store: Path, number: int) -> Iterator[list[Path]]:
    """Before the so manyth file is opened to be written, its folder may no longer be written to."""
    taken: list[Path] = []
    count, real = 0, os.open

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        nonlocal count
        count += bool(flags & os.O_EXCL)
        if count == number and not taken:
            taken.append(Path(path).parent)
            taken[0].chmod(0o555)
        return real(path, flags, *args, **kwargs)

    with mock.patch.object(os, "open", opened):
        yield taken


def _become_nobody(work: Path) -> None:
    if os.getuid() == 0:
        os.chown(work, NOBODY, NOBODY)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def file_size_quota(work: Path) -> Any:
    """No file may be longer than so many bytes (EFBIG), as under a quota of the shell or of a batch system."""
    write_all(work / "reference")
    found = []
    for limit in (0, 100, 500, 900, 1200, 2000):
        store = work / f"scores-{limit}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        error = attempt(store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        before, again = committed(store), attempt(store)
        same = fingerprint(store) == fingerprint(work / "reference")
        found.append({"limit": limit, "error": error, "committed": before, "again": again, "same": same})
    return found


def two_writers(work: Path) -> Any:
    """Fifty times two writers that begin at the same moment, in processes of their own."""
    write_all(work / "reference")
    found = []
    mock.patch.object(os, "fsync").start()  # how long a disk takes is not what this is about
    for number in range(50):
        store = work / f"scores-{number}"
        reading, writing = os.pipe()
        children = [_forked(store, reading, writing) for _ in range(2)]
        os.close(reading)
        os.close(writing)  # both begin now
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        again = attempt(store)
        same = fingerprint(store) == fingerprint(work / "reference")
        found.append({"codes": codes, "again": again, "same": same, "leftovers": leftovers(store)})
    return found


def _forked(store: Path, reading: int, writing: int) -> int:
    child = os.fork()
    if child:
        return child
    os.close(writing)
    os.read(reading, 1)
    code = FAILED
    try:
        write_all(store, lambda _: time.sleep(0.001))
        code = DONE
    except BusyError:
        code = BUSY
    finally:
        os._exit(code)


def paused_writer(work: Path) -> Any:
    """A writer that is stopped before it publishes segment 2 keeps others out; once killed it is taken over from."""
    write_all(work / "reference")
    store = work / "scores"
    child = _stopped_before_publishing(store, 2, shared=False)
    os.waitpid(child, os.WUNTRACED)
    while_stopped, readable = attempt(store), committed(store)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    again = attempt(store)
    same = fingerprint(store) == fingerprint(work / "reference")
    return {
        "child": child,
        "while_stopped": while_stopped,
        "readable": readable,
        "again": again,
        "same": same,
        "leftovers": leftovers(store),
    }


def late_worker(work: Path) -> Any:
    """One of several workers is stopped before it publishes segment 2; another publishes it; the late one wakes up."""
    write_all(work / "reference")
    store = work / "scores"
    child = _stopped_before_publishing(store, 2, shared=True)
    os.waitpid(child, os.WUNTRACED)
    write_all(store, shared=True)
    first = (store / "commits" / "000002.json").read_bytes()
    os.kill(child, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept = (store / "commits" / "000002.json").read_bytes() == first
    again = attempt(store)
    same = fingerprint(store) == fingerprint(work / "reference")
    return {"code": code, "kept": kept, "again": again, "same": same, "leftovers": leftovers(store)}


def _stopped_before_publishing(store: Path, index: int, *, shared: bool) -> int:
    child = os.fork()
    if child:
        return child
    real, code = durable.create_exclusive, FAILED

    def create_exclusive(path: Path, data: bytes) -> None:
        if path.name == f"{index:06d}.json":
            os.kill(os.getpid(), signal.SIGSTOP)
        real(path, data)

    try:
        with mock.patch.object(commits_module, "create_exclusive", create_exclusive):
            write_all(store, shared=shared)
        code = DONE
    finally:
        os._exit(code)


def wrong_clocks(work: Path) -> Any:
    """Clocks that stand in the past, far in the future, and go back between segments; and files of any age."""
    write_all(work / "reference")
    store, years = work / "scores", iter((2100, 1970, 2038, 1999, 2200, 1971, 2000, 2001))
    real = time.gmtime

    def gmtime(*args: Any) -> time.struct_time:
        return time.struct_time((next(years), *real()[1:]))

    with mock.patch.object(time, "gmtime", gmtime), contextlib.suppress(InterruptedError):
        write_all(store, _stop_after(1))
    for number, path in enumerate(sorted(store.rglob("*"))):
        os.utime(path, (0, 0) if number % 2 else (2**32, 2**32))
    again = attempt(store)
    times = [read_record(path).writer["time"][:4] for path in sorted((store / "commits").iterdir())]
    return {"again": again, "times": times, "same": fingerprint(store) == fingerprint(work / "reference")}


def forks_and_threads(work: Path) -> Any:
    """A fork of a writing process that ends does not give its lock away; threads write one segment at a time."""
    write_all(work / "reference")
    store = work / "scores"
    settings: dict[str, Any] = {"run": {}, "identity": IDENTITY, "num_segments": NUM_SEGMENTS}
    with ScoreWriter.create_or_resume(store, **settings) as writer:
        child = os.fork()
        if not child:
            writer.close()
            os._exit(DONE)
        os.waitpid(child, 0)
        after_fork = attempt(store)
        writer.write_dictionary(["a", "b"], {SITE: np.ones(16, np.float32)})
        writer.write_facts("gate", {"passed": True})
        segments = [make_segment(index, num_tokens=12, num_documents=2, num_latents=16) for index in range(4)]
        threads = [threading.Thread(target=writer.write, args=(segment,)) for segment in segments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"after_fork": after_fork, "same": fingerprint(store) == fingerprint(work / "reference")}


def broken_disk(work: Path) -> Any:
    """Every kind of call to the system fails once with EIO, early and late."""
    write_all(work / "reference")
    found = []
    for name in ("open", "write", "fsync", "link", "mkdir"):
        for after in (0, 1, 7, 60, 150):
            store = work / f"{name}-{after}"
            with _fails(name, after) as failed:
                error = attempt(store)
            before, again = committed(store), attempt(store)
            same = fingerprint(store) == fingerprint(work / "reference")
            found.append(
                {
                    "call": f"{name} {after}",
                    "failed": bool(failed),
                    "error": error,
                    "committed": before,
                    "again": again,
                    "same": same,
                    "leftovers": leftovers(store),
                }
            )
    return found


@contextlib.contextmanager
def _fails(name: str, after: int) -> Iterator[list[bool]]:
    """One call of `os.<name>` fails, after so many that do not."""
    real, failed, count = getattr(os, name), list[bool](), 0
    lock = threading.Lock()

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            fails = count == after + 1
        if fails:
            failed.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO), args[0] if args and isinstance(args[0], str) else None)
        return real(*args, **kwargs)

    with mock.patch.object(os, name, call):
        yield failed


def open_hostile(work: Path) -> Any:
    """Open, verify and read the stores in a folder with one gigabyte of memory; return the errors' sentences."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    signal.alarm(60)
    return {store.name: _errors_of(store) for store in sorted(work.iterdir())}


def merge_hostile(work: Path) -> Any:
    """Verify, merge and rewrite the stores in a folder with 1.5 GiB of memory; return what came of each."""
    resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
    signal.alarm(60)
    return {store.name: _rewritten(store, work) for store in sorted(work.iterdir())}


def _rewritten(store: Path, work: Path) -> list[str]:
    answers = []
    for step in (
        lambda: verify(store),
        lambda: merge_segments([store], work.parent / f"merged-{store.name}"),
        lambda: drop_documents(store, ["address-0"]),
    ):
        try:
            answers.append(str(step()))
        except StoreError as error:
            answers.append(str(error))
    return answers


def _errors_of(store: Path) -> list[str]:
    def read() -> None:
        opened = open_scores(store)
        opened.token_strings()
        for segment in opened.segments:
            segment.tokens()
            segment.documents()
            segment.site(SITE).by_token()

    errors = []
    for step in (lambda: verify(store), read):
        try:
            errors += [str(fault) for fault in step() or ()]
        except StoreError as error:
            errors.append(str(error))
    return errors


def _encode_once() -> None:
    """Compressing the same segments a hundred times would take most of the time."""
    encoded: dict[int, list[tuple[str, bytes]]] = {}
    real = encoding_module.segment_objects

    def segment_objects(segment: SegmentScores, encoding: encoding_module.Encoding) -> Iterator[tuple[str, bytes]]:
        if segment.index not in encoded:
            encoded[segment.index] = list(real(segment, encoding))
        return iter(encoded[segment.index])

    mock.patch.object(writer_module, "segment_objects", segment_objects).start()


def main() -> None:
    """Run the function that the command line names, and print its report as JSON."""
    _encode_once()
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))


if __name__ == "__main__":
    main()
