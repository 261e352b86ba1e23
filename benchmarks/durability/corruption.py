"""Damage: in a store that has every kind of object, one file at a time is changed, cut short, exchanged or removed.

What must hold each time:

    `verify` finds it, and names the file and its segment
    a reader that reads everything raises an error that names the object, by its file or by segment and array, or
    returns the numbers that were written and no others; that a sound file was exchanged with another one of its kind a
    reader cannot see, and `verify` does

and now and then, for every kind of object: `repair` and the same run again bring back equal bytes.
"""

import random
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from benchmarks.durability.contents import contents, digest
from benchmarks.durability.everything import readings, write_everything
from benchmarks.durability.outcome import Outcome
from gradsae_fast.errors import GradsaeError
from gradsae_fast.store import repair, verify
from gradsae_fast.store.places.lock import LOCK_FILE
from gradsae_fast.store.records.identity import RUN_FILE

FLIPS_PER_HEALING = 50
# Without its record a segment is one that is still to be written, and a sidecar one that never was.
_MAY_BE_ABSENT = re.compile(r"(commits|facts)/|commit\.json|^index/\*\.json")
_OF_SEGMENT = re.compile(r"(?:exact/)?(?:commits|segments)/(\d{6})\b.*")
_IN_SEGMENT = re.compile(r"(?:exact/)?segments/(\d{6})-[0-9a-f]{16}/(.*)/(?:zarr\.json|c\.0)")


class Victim:
    """A complete store and the bytes that it had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        write_everything(path)
        self.files = {file: file.read_bytes() for file in sorted(_files(path))}
        self.numbers = {room: digest(read()) for room, read in readings(path).items()}
        self.contents = contents(path)
        self.kinds: dict[str, list[Path]] = {}
        for file in self.files:
            self.kinds.setdefault(_kind(file.relative_to(path)), []).append(file)

    def restore(self, file: Path) -> None:
        file.write_bytes(self.files[file])

    def unnamed(self, *damaged: Path) -> list[str]:
        """Those of these files that `verify` does not name, with their segments."""
        names = {str(file.relative_to(self.path)) for file in damaged}
        try:
            return sorted(
                names - {fault.object for fault in verify(self.path) if fault.segment == _segment(fault.object)}
            )
        except GradsaeError as error:
            return sorted(name for name in names if name not in str(error))
        except Exception as error:  # noqa: BLE001 - an error of another kind is a broken promise, to be counted
            return [f"{name}: verify fails with {error!r}" for name in sorted(names)]

    def faults_of(self, file: Path, what: str) -> list[str]:
        """What does not hold while `file` is damaged."""
        unnamed = [f"verify does not name {name}, {what}" for name in self.unnamed(file)]
        return [*unnamed, *self.misread(file, what, self.numbers)]

    def misread(self, file: Path, what: str, rooms: Collection[str]) -> list[str]:
        """What readers of these rooms get that they must not, while `file` is damaged."""
        name = str(file.relative_to(self.path))
        try:
            found = readings(self.path)
            wrong = [room for room in rooms if digest(found[room]()) != self.numbers[room]]
        except GradsaeError as error:
            return [] if _tells_of(str(error), name) else [f"an error names another place: {name}, {what}: {error}"]
        except Exception as error:  # noqa: BLE001 - as above
            return [f"a reader fails with {error!r}: {name}, {what}"]
        return [f"a reader returns other numbers of {room}: {name}, {what}" for room in wrong]


def flip_bits(folder: Path, times: int, seed: int = 0) -> Outcome:
    """Flip one bit, so many times: a kind of object at random, a file of it, a bit of that; heal now and then."""
    victim, chance, outcome = Victim(folder / "flipped"), random.Random(seed), Outcome()
    for number in range(times):
        file = chance.choice(victim.kinds[chance.choice(list(victim.kinds))])
        data, bit = bytearray(victim.files[file]), chance.randrange(8 * len(victim.files[file]))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        outcome.violations += victim.faults_of(file, f"bit {bit} flipped")
        outcome.count("bits flipped")
        if number % FLIPS_PER_HEALING == 0:
            _heal(victim, f"{file.relative_to(victim.path)}, bit {bit} flipped", outcome)
        else:
            victim.restore(file)
    return outcome


def cut_short(folder: Path, share: tuple[int, int] = (0, 1), most: int | None = None) -> Outcome:
    """Cut one file of every kind to every shorter length.

    `verify` is asked while all files that are long enough are cut to a length, first the objects, then the documents
    that name these; readers while one is, and only for what is in its room.

    Args:
        folder: where the store is made.
        share: (i, n): of the lengths the i-th of n equal parts.
        most: so many lengths of files drawn at random, in place of all.
    """
    victim, outcome = Victim(folder / "cut"), Outcome()
    sizes, chance = [len(victim.files[files[0]]) for files in victim.kinds.values()], random.Random(share[0])
    drawn = [chance.randrange(chance.choice(sizes)) for _ in range(most or 0)]
    for length in range(share[0], max(sizes), share[1]) if most is None else drawn:
        files = [files[0] for files in victim.kinds.values() if len(victim.files[files[0]]) > length]
        documents = [file for file in files if file.suffix == ".json" and file.name != "zarr.json"]
        _cut_all([file for file in files if file not in documents], length, victim, outcome)
        _cut_all(documents, length, victim, outcome)
    return outcome


def _cut_all(files: list[Path], length: int, victim: Victim, outcome: Outcome) -> None:
    for file in files:
        file.write_bytes(victim.files[file][:length])
    what = f"cut to {length} bytes"
    outcome.violations += [f"verify does not name {name}, {what}" for name in victim.unnamed(*files)]
    for file in files:
        victim.restore(file)
    for file in files:
        file.write_bytes(victim.files[file][:length])
        outcome.violations += victim.misread(file, what, [_room(file.relative_to(victim.path))])
        outcome.count("files cut short")
        victim.restore(file)


def remove_and_exchange(folder: Path, most: int | None = None, seed: int = 0) -> Outcome:
    """Remove a file of every kind (or of `most` kinds, drawn at random), exchange two of it; heal each time.

    A file is exchanged with another of the same store, and with its namesake of a store of other scores.
    """
    outcome = Outcome()
    victim = Victim(folder / "healed")
    strangers = _strangers(folder / "strangers", victim)
    kinds = list(victim.kinds) if most is None else random.Random(seed).sample(list(victim.kinds), most)
    for kind in kinds:
        file, files = victim.kinds[kind][0], victim.kinds[kind]
        file.unlink()
        if not _MAY_BE_ABSENT.search(kind):
            outcome.violations += victim.faults_of(file, "removed")
            outcome.count("files removed")
        _heal(victim, f"{kind} removed", outcome)
        others = [next((o for o in map(victim.files.get, files[1:]) if o != victim.files[file]), None)]
        others += [strangers.get(kind)]
        for what, data in zip(("exchanged", "taken from another store"), others, strict=True):
            if data is not None and data != victim.files[file]:
                file.write_bytes(data)
                outcome.violations += [f"verify does not name {name}, {what}" for name in victim.unnamed(file)]
                outcome.count(f"files {what}")
                _heal(victim, f"{kind} {what}", outcome)
    return outcome


def _strangers(path: Path, victim: Victim) -> dict[str, bytes]:
    """Of a store of the same run with other scores, the objects of arrays, by kind: whole, and not the right ones."""
    write_everything(path, seed=1)
    found = {_kind(file.relative_to(path)): file.read_bytes() for file in sorted(_files(path), reverse=True)}
    return {kind: data for kind, data in found.items() if kind in victim.kinds and kind.endswith("/c.0")}


def _heal(victim: Victim, what: str, outcome: Outcome) -> None:
    """Repair the damaged store and run again; then put the very files back, as new attempts have other names."""
    try:
        repair(victim.path)
        write_everything(victim.path)
        faults = [f"after repair and the same run, {what}: {fault}" for fault in verify(victim.path)]
        numbers = {room: digest(read()) for room, read in readings(victim.path).items()}
        if contents(victim.path) != victim.contents or numbers != victim.numbers:
            faults.append(f"repair and the same run bring back other bytes: {what}")
        outcome.count("stores healed to equal bytes")
    except GradsaeError as error:
        faults = [] if RUN_FILE in what else [f"repair fails: {what}: {error}"]  # from it everything else follows
    outcome.violations += faults
    shutil.rmtree(victim.path)
    for file, data in victim.files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file() and file.name != LOCK_FILE)


def _kind(name: Path) -> str:
    """The name without numbers of segments and names of attempts."""
    return re.sub(r"\b[0-9a-f]{16}\b", "*", re.sub(r"\b\d{6}\b", "#", str(name)))


def _room(name: Path) -> str:
    """The room of `readings` that a file belongs to."""
    match = _OF_SEGMENT.fullmatch(str(name))
    if match is None:
        return name.parts[0]
    return f"{'exact/' if name.parts[0] == 'exact' else ''}segments/{match[1]}"


def _segment(name: str) -> int | None:
    """The segment that a fault of an object is to name."""
    match = _OF_SEGMENT.fullmatch(name)
    return None if match is None else int(match[1])


def _tells_of(error: str, name: str) -> bool:
    """Whether an error names the object: by its file, or by its segment or room and its array."""
    match = _IN_SEGMENT.fullmatch(name)
    if match is not None and f"segment {int(match[1])}" in error and match[2] in error:
        return True
    if name in error or not name.endswith(("/zarr.json", "/c.0")):
        return name in error
    room, *parts = name.split("/")[:-1]
    return f"{room}/{'/'.join(parts)}" in error or (room in error and "/".join(parts[1:]) in error)
