"""One of many writers of the same stores, as a process of its own.

    python -m tests.store.sharing WHAT ROOT RANK SIZE ROUNDS

In each round of `stores` every writer writes every segment of a new store, in an order of its own, so that each is
raced for; in a round of `commits` it publishes one small object of one segment. Writers wait for each other before it.
Nothing is synced: what is tried here is not the disk.
"""

import os
import random
import sys
import time
from pathlib import Path

import numpy as np

from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.records.commits import prepare, publish_segment
from tests.store.synthetic import IDENTITY, SITE, make_segment

NUM_SEGMENTS = 3
_NUM_LATENTS = 8


def write_all(path: Path, order: list[int], *, shared: bool) -> None:
    """Begin a store or join in, and write its segments in this order."""
    with ScoreWriter.create_or_resume(
        path, run={"process": os.getpid()}, identity=IDENTITY, num_segments=NUM_SEGMENTS, shared=shared
    ) as writer:
        writer.keep_facts("plan", {"segments": NUM_SEGMENTS})
        writer.write_dictionary(["the", " of"], {SITE: np.ones(_NUM_LATENTS)})
        writer.keep_facts("gate", {"process": os.getpid()})
        for index in order:
            writer.write(make_segment(index, num_tokens=6, num_documents=2, num_latents=_NUM_LATENTS, l0=2))


def wait_for_others(folder: Path, rank: int, size: int) -> None:
    """Return when every writer has come here."""
    (folder / f"ready-{rank}").touch()
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(folder.glob("ready-*"))) < size:
        time.sleep(0.001)


def main() -> None:
    """Take part in all rounds."""
    what, root, rank, size, rounds = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    os.fsync = lambda fd: None
    chance = random.Random(rank)
    for number in range(rounds):
        folder = root / str(number)
        folder.mkdir(exist_ok=True)
        wait_for_others(folder, rank, size)
        if what == "stores":
            write_all(folder / "scores", chance.sample(range(NUM_SEGMENTS), NUM_SEGMENTS), shared=True)
        else:
            prepare(folder)
            publish_segment(folder, 0, [("object", bytes([number]))], {})


if __name__ == "__main__":
    main()
