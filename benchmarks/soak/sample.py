"""What another process holds at a moment, as Linux tells it, and what lies in the folder that it works in."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradsae_fast.store.places.durable import TEMPORARY
from gradsae_fast.store.records.commits import COMMITS, SEGMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look."""

    seconds: float  # since the process was started
    round: int
    tokens: int  # scored so far
    blocks: int  # of Python's allocator: what its objects take
    resident: int  # bytes of memory, shared pages included
    proportional: int  # bytes of memory, a shared page by its share
    handles: int
    threads: int
    temporaries: int  # half-written files, folders of segments without a record, files where temporary ones go
    disk: int  # bytes of all files in the folder


def look(process: int, folder: Path, *, seconds: float, round: int, tokens: int, blocks: int) -> Sample:
    """Sample a running process that works in `folder`.

    Raises:
        OSError: it has ended.
    """
    place = Path(f"/proc/{process}")
    memory = _fields(place / "smaps_rollup")
    temporaries, disk = _contents(folder)
    return Sample(
        seconds=seconds,
        round=round,
        tokens=tokens,
        blocks=blocks,
        resident=memory["Rss"],
        proportional=memory["Pss"],
        handles=_count(place / "fd"),
        threads=_count(place / "task"),
        temporaries=temporaries,
        disk=disk,
    )


def _fields(path: Path) -> dict[str, int]:
    """Lines `Name:   12 kB` as bytes."""
    found = {}
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = 1024 * int(rest.split()[0])
    return found


def _contents(folder: Path) -> tuple[int, int]:
    """Count what is half-written, and the bytes of everything; files that vanish meanwhile count as nothing."""
    temporaries = disk = 0
    for path, length in _files(folder):
        disk += length
        temporaries += path.name.startswith(TEMPORARY) or path.parent == folder / "tmp"
    for store in folder.glob("*.gradsae"):
        if (store / SEGMENTS).is_dir():
            records = len(list((store / COMMITS).glob("*.json")))
            temporaries += max(0, _count(store / SEGMENTS) - records)
    return temporaries, disk


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for inner, _, names in os.walk(folder):
        for name in names:
            try:
                yield Path(inner) / name, (Path(inner) / name).stat().st_size
            except FileNotFoundError:
                continue
