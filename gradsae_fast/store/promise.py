"""What a store survives where it lies, and the trials behind that.

Trials, not adjectives: the numbers are those of `benchmarks/results/<MEASURED>-durability.md`, which had no violation,
and n trials without one say with 95 % confidence that fewer than 3 in n go wrong. A test compares the two.

    crash-safe     a process killed at any step loses no committed segment, and the same command completes the store
    power-safe     the same where power fails, as far as the file system's fsync reaches the disk
    multi-writer   several writers may share a store: what one commits, another one cannot overwrite
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.place import Place

MEASURED = "2026-11-23"
# Without a violation each:
TRIALS = {"kills": 11_900, "steps": 1_584, "power cuts": 2_700, "flips": 5_000, "cuts": 28_600}
TRIED_ON = ("ext4", "tmpfs")
BUCKET = "bucket"
MOUNTS = Path("/proc/self/mountinfo")

_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "overlay"}
_MEMORY = {"tmpfs", "ramfs"}
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What holds of a store at its place; None is what nobody has tried.

    Attributes:
        medium: the file system's type, "bucket", or "unknown".
        crash_safe: whether a killed process leaves it whole.
        power_safe: whether a power cut does.
        multi_writer: whether several writers may share it.
    """

    medium: str
    crash_safe: bool | None
    power_safe: bool | None
    multi_writer: bool | None


def promise_of(store: Place) -> Promise:
    """Return what holds of a store by where it lies: a local disk, memory, a bucket, or what nobody has tried."""
    medium = BUCKET if isinstance(store, BucketPath) else file_system(store)
    if medium in _MEMORY:
        return Promise(medium=medium, crash_safe=True, power_safe=False, multi_writer=True)
    tried = True if medium == BUCKET or medium in _DISKS else None
    return Promise(medium=medium, crash_safe=tried, power_safe=tried, multi_writer=tried)


def file_system(path: Path) -> str:
    """Return the type of the file system that a folder lies on, or "unknown" where Linux's list of mounts is absent."""
    if not MOUNTS.exists():
        return "unknown"
    place, found = path.resolve(), {}
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        mounted = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), left.split()[4]))
        if place.is_relative_to(mounted):
            found[len(mounted.parts)] = right.split()[0]  # a later mount on the same folder hides an earlier one
    return found[max(found)] if found else "unknown"


def promise_facts(promise: Promise) -> dict[str, Any]:
    """Return a promise and the trials behind it as JSON values; null is what nobody has tried."""
    return {**asdict(promise), "trials": dict(TRIALS), "violations": 0, "measured": MEASURED}


def sentences(promise: Promise) -> list[str]:
    """Say a promise in words, with the trials behind it."""
    if promise.crash_safe is None:
        return [f"none: nothing was tried on a file system of type {promise.medium}; use a local disk or a bucket"]
    return [_on_crashes(), _on_power(promise), _on_writers(), _on_damage()]


def _on_crashes() -> str:
    return (
        f"crash-safe: {TRIALS['kills']:,} kills at random moments and {TRIALS['steps']:,} before single steps on "
        f"{' and '.join(TRIED_ON)}, 0 violations ({MEASURED})"
    )


def _on_power(promise: Promise) -> str:
    if promise.medium == BUCKET:
        return "power-safe as the service is: what it has answered to is taken as durable"
    if not promise.power_safe:
        return f"not power-safe: {promise.medium} is memory"
    trials = f"{TRIALS['power cuts']:,} replayed power cuts, 0 violations"
    return f"power-safe as far as fsync on {promise.medium} reaches the disk: {trials}"


def _on_writers() -> str:
    return "multi-writer: commits are created exclusively, which every start of a writer probes"


def _on_damage() -> str:
    trials = f"{TRIALS['flips']:,} flipped bits and {TRIALS['cuts']:,} files cut short, 0 unnoticed"
    return f"damage is found by `gradsae verify`: {trials}"
