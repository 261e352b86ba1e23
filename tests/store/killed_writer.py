"""Writers that die, run in a process of their own so that the tests can kill them. Commands:

    hold STORE            hold the writer's lock until standard input closes
    random FOLDER KILLS   kill -9 a writer of small stores KILLS times at random moments, resuming each time
    steps FOLDER          kill -9 a writer before every one of its steps on the disk, resuming each time

`random` and `steps` fork one child per life; nothing here starts a thread before forking. A line on standard output
ends each: what was done. A broken promise raises.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gradsae_fast.store.writer
from gradsae_fast.records import SegmentScores
from gradsae_fast.store import ScoreWriter, open_scores, verify
from gradsae_fast.store.arrays import encode_array
from gradsae_fast.store.encoding import Encoding, segment_objects
from gradsae_fast.store.layout import TOKENS
from tests.store.synthetic import IDENTITY, make_segment

NUM_SEGMENTS = 4


def open_writer(path: Path) -> ScoreWriter:
    return ScoreWriter.create_or_resume(path, run={"pid": os.getpid()}, identity=IDENTITY, num_segments=NUM_SEGMENTS)


def write_all(path: Path, acknowledge: Callable[[int], object] = lambda index: None) -> None:
    with open_writer(path) as writer:
        for index in sorted(set(range(NUM_SEGMENTS)) - writer.committed):
            writer.write(make_segment(index, num_tokens=12, num_documents=2, num_latents=16))
            acknowledge(index)


def in_child(action: Callable[[], None]) -> int:
    """Fork; the child acts and exits without cleaning up, as a killed one would."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return child


def hold(path: Path) -> None:
    with open_writer(path):
        sys.stdout.write("holding\n")
        sys.stdout.flush()
        sys.stdin.read()


def kill_at_random(folder: Path, kills: int) -> None:
    encoding = Encoding(precision_bits=10, profile="compact", aggregates_include_special=False)
    list(segment_objects(make_segment(), encoding))  # compiles, so that children write from their first moment
    started = time.perf_counter()
    os.waitpid(in_child(lambda: write_all(folder / "uninterrupted")), 0)
    whole = time.perf_counter() - started
    expected = [segment.digest for segment in open_scores(folder / "uninterrupted").segments]
    chance, done, stores = random.Random(0), 0, 0
    while done < kills:
        path = folder / f"interrupted-{stores}"
        read, write = os.pipe()
        child = in_child(lambda: write_all(path, lambda index: os.write(write, bytes([index]))))  # noqa: B023
        time.sleep(chance.uniform(0, 0.6 * whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(write)
        acknowledged = set(os.read(read, 100))
        os.close(read)
        done += os.WIFSIGNALED(status)
        if (path / "run.json").exists() and (path / "commits").exists():
            store = open_scores(path)
            assert acknowledged <= {segment.index for segment in store.segments}
            assert [segment.digest for segment in store.segments] == [expected[s.index] for s in store.segments]
            stores += store.is_complete
    for number in range(stores + 1):
        write_all(folder / f"interrupted-{number}")
        store = open_scores(folder / f"interrupted-{number}")
        assert [segment.digest for segment in store.segments] == expected
        assert verify(store.path) == []
        assert len(list((store.path / "segments").iterdir())) == NUM_SEGMENTS
    sys.stdout.write(f"{done} kills, {stores + 1} stores\n")


def two_objects(segment: SegmentScores, encoding: Encoding) -> Iterator[tuple[str, bytes]]:
    """Stands in for a segment's objects: what dies is the protocol, and it does not know what it carries."""
    for name in ("a/b", "c"):
        for key, data in encode_array(np.arange(segment.index + 3), TOKENS[0], "compact").items():
            yield f"{name}/{key}", data


class Death:
    """Kills this process before the n-th call of any of the wrapped functions."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        for name in ("mkdir", "write", "fsync", "link", "unlink", "replace", "close"):
            setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return function(*args, **kwargs)

        return step


def kill_at_every_step(folder: Path) -> None:
    gradsae_fast.store.writer.segment_objects = two_objects  # type: ignore[attr-defined]
    segment = make_segment(0, num_tokens=2, num_documents=1, num_latents=4)

    def write_one(path: Path, dies: bool, calls: int = 0) -> None:
        if dies:
            Death(calls)
        with open_writer(path) as writer:
            if 0 not in writer.committed:
                writer.write(segment)
            writer.write_facts("gate", {"x": 1})

    digests: set[str] = set()
    step, status = 0, 1
    while status != 0:
        path = folder / f"step-{step}"
        _, status = os.waitpid(in_child(lambda: write_one(path, dies=True, calls=step)), 0)  # noqa: B023
        assert status == 0 or os.WIFSIGNALED(status)
        visible = (path / "commits" / "000000.json").exists()
        if visible:
            digests.add(open_scores(path).segments[0].digest)
        write_one(path, dies=False)
        assert verify(path) == []
        digests.add(open_scores(path).segments[0].digest)
        assert len(digests) == 1
        assert len(list((path / "segments").iterdir())) == 1
        assert not list(path.rglob(".tmp-*"))
        step += 1
    sys.stdout.write(f"{step - 1} steps\n")


if __name__ == "__main__":
    command, target, *rest = sys.argv[1:]
    if command == "hold":
        hold(Path(target))
    elif command == "random":
        kill_at_random(Path(target), int(rest[0]))
    else:
        kill_at_every_step(Path(target))
