"""Ways to change one thing in a store that somebody could change who means harm, with sums that fit all the way up.

A field of a JSON document, an array's metadata, its numbers, the bytes of a shard, one file in another's place,
something that is no file. A trial is a function of its number.
"""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.store.arrays.stored import METADATA, SHARD, StoredArray, encode_array
from gradsae_fast.store.format.codecs import add_checksum
from gradsae_fast.store.format.layout import Array, ArraySpec
from gradsae_fast.store.places.durable import document_bytes
from gradsae_fast.store.records.commits import read_record
from gradsae_fast.store.records.objects import describe
from tests.store.crafted import digest, places, signed
from tests.store.synthetic import SITE

ODD_TEXTS = (
    "",
    ".",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "C:\\x",
    "\x00",
    "é" * 300,
    "x" * 5000,
    SITE,
)
ODD_NUMBERS = (-1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63, 10**30, -(10**30), 0.5, -0.0, float("nan"), float("inf"))
ODD_LISTS: tuple[Any, ...] = ([], [[]], [None], list(range(100)), {}, {"": {}}, [{}], [0, "0", None])
DTYPES = (
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int64",
    "float32",
    "float64",
    "int8",
    "object",
    "S9",
    "M8[ns]",
    "bool",
)


@dataclass(slots=True)
class Victim:
    """A store that is changed and put back; every change goes through `write`, `remove` and `put`."""

    path: Path
    changed: dict[Path, bytes | None] = field(default_factory=dict)

    @property
    def documents(self) -> list[Path]:
        """The JSON documents with checksums, sorted."""
        return sorted(p for p in self.path.rglob("*.json") if p.name != METADATA and "dropped" not in p.parts)

    @property
    def records(self) -> list[Path]:
        """The commit records, sorted."""
        return [p for p in self.documents if b'"objects"' in p.read_bytes() and p.parent.name not in _HISTORY]

    def write(self, path: Path, data: bytes) -> None:
        """Change a file."""
        self.changed.setdefault(path, path.read_bytes() if path.exists() else None)
        path.write_bytes(data)

    def remove(self, path: Path) -> None:
        """Delete a file."""
        self.changed.setdefault(path, path.read_bytes())
        path.unlink()

    def put(self, path: Path, make: Callable[[Path], object]) -> None:
        """Put something that is no plain file in the place of a file."""
        self.remove(path)
        make(path)

    def restore(self) -> None:
        """Undo all changes."""
        for path, data in self.changed.items():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
        self.changed.clear()


_HISTORY = ("revisions", "copies", "generations")


def trial(victim: Victim, number: int) -> str:
    """Change one thing; return what in words."""
    rng = np.random.default_rng(number)
    mutations = (_field, _field, _field, _raw_document, _metadata, _numbers, _numbers, _shard, _exchange, _no_file)
    mutation = mutations[rng.integers(len(mutations))]
    return f"{mutation.__name__.strip('_')}: {mutation(victim, rng)}"


def _field(victim: Victim, rng: np.random.Generator) -> str:
    """Change a field of a JSON document, or several, and its checksum."""
    path = _one(rng, victim.documents)
    document = json.loads(path.read_bytes())
    where = [_change(document, rng) for _ in range(rng.integers(1, 3))]
    if "objects" in document and rng.random() < 0.7:
        document["digest"] = digest(document)
    victim.write(path, signed(document))
    return f"{path.relative_to(victim.path)} {', '.join(where)}"


def _change(document: dict[str, Any], rng: np.random.Generator) -> str:
    """Change one place of a document; returns which, and what it became."""
    paths = list(places(document))
    path = _one(rng, paths)
    holder, key, name = _at(document, path[:-1]), path[-1], ".".join(map(str, path))
    kind = rng.integers(6)
    if kind == 0:
        del holder[key]
        return f"without {name}"
    if kind == 1 and isinstance(holder, dict):
        holder[str(_odd(rng))[:300]] = holder.pop(key)
        return f"{name} renamed"
    if kind == 2:
        other = _one(rng, paths)
        holder[key] = json.loads(json.dumps(_at(document, other)))
        return f"{name} = that of {'.'.join(map(str, other))}"
    if kind == 3 and isinstance(holder, list):
        holder.insert(int(rng.integers(len(holder) + 1)), json.loads(json.dumps(holder[key])))
        return f"{name} twice"
    if kind == 4 and type(holder[key]) is int:
        holder[key] += int(rng.choice([-1, 1, 7, 2**31]))
        return f"{name} = {holder[key]}"
    holder[key] = _odd(rng)
    return f"{name} = {str(holder[key])[:40]}"


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _odd(rng: np.random.Generator) -> Any:
    kind = rng.integers(5)
    if kind == 0:
        return _one(rng, ODD_TEXTS)
    if kind == 1:
        return _one(rng, ODD_NUMBERS)
    if kind == 2:
        return json.loads(json.dumps(_one(rng, ODD_LISTS)))
    if kind == 3:
        return _one(rng, (None, True, False))
    deep: Any = 0
    for _ in range(int(rng.choice([3, 70, 300]))):
        deep = [deep]
    return deep


def _raw_document(victim: Victim, rng: np.random.Generator) -> str:
    """Change bytes of a document, whatever that makes of it."""
    path = _one(rng, victim.documents)
    victim.write(path, _mangled(path.read_bytes(), rng))
    return str(path.relative_to(victim.path))


def _mangled(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    kind = rng.integers(4)
    at = int(rng.integers(len(changed) + 1))
    if kind == 0:
        return bytes(changed[:at])
    if kind == 1:
        changed[at:at] = rng.bytes(int(rng.integers(1, 20)))
    elif kind == 2:
        del changed[at : at + int(rng.integers(1, 20))]
    else:
        for _ in range(rng.integers(1, 9)):
            if changed:
                changed[rng.integers(len(changed))] = rng.integers(256)
    return bytes(changed)


def _metadata(victim: Victim, rng: np.random.Generator) -> str:
    """Change the metadata of an array, and all sums above it."""
    record, folder = _folder(victim, rng)
    path = _one(rng, sorted(p for p in folder.rglob(METADATA) if (p.parent / SHARD).exists()))
    metadata = json.loads(path.read_bytes())
    kind = rng.integers(4)
    if kind == 0:
        metadata["shape"] = [int(_one(rng, (0, 1, 10**6, 10**9, 10**15, 10**18, 2**62)))]
        where = f"shape {metadata['shape']}"
    elif kind == 1:
        metadata["data_type"] = _one(rng, DTYPES)
        where = f"data_type {metadata['data_type']}"
    elif kind == 2:
        chunk = int(_one(rng, (0, 1, 2, 65_536, 65_537, 10**15)))
        metadata["codecs"][0]["configuration"]["chunk_shape"] = [chunk]
        where = f"chunk {chunk}"
    else:
        where = _change(metadata, rng)
    data = json.dumps(metadata).encode() if rng.random() < 0.9 else _mangled(path.read_bytes(), rng)
    _replace(victim, record, folder, {path: data})
    return f"{path.relative_to(victim.path)} {where}"


def _numbers(victim: Victim, rng: np.random.Generator) -> str:
    """Write an array anew with other numbers, and all sums above it."""
    record, folder = _folder(victim, rng)
    path = _one(rng, sorted(folder.rglob(SHARD))).parent
    values = StoredArray(path, "x").read().copy()
    changed, what = _other_numbers(values, rng)
    spec = ArraySpec(name="x", dtype=changed.dtype.name, dims=("x",), meaning="x")
    objects = encode_array(changed, spec, _one(rng, ("compact", "portable")))
    _replace(victim, record, folder, {path / key: data for key, data in objects.items()})
    return f"{path.relative_to(victim.path)} {what}"


def _other_numbers(values: Array, rng: np.random.Generator) -> tuple[Array, str]:
    kind = rng.integers(6)
    if kind == 0:
        return values.astype(_one(rng, ("uint8", "uint16", "uint32", "int64", "float32", "float64"))), "of another type"
    if kind == 1:
        return np.resize(values, max(0, len(values) + int(rng.integers(-3, 4)))), "of another length"
    if kind == 2:
        return rng.permutation(values), "shuffled"
    if kind == 3:
        return rng.integers(0, 256, values.nbytes, np.uint8).view(values.dtype), "random"
    if np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)
        odd = _one(rng, (limits.min, limits.max, limits.max // 2 + 1, 0, 1))
    else:
        odd = _one(rng, (np.nan, np.inf, -np.inf, np.finfo(values.dtype).max, 0.0, -1.0))
    at = rng.integers(0, len(values), max(1, len(values) // 8)) if kind == 4 else slice(None)
    values[at] = odd
    return values, f"with {odd}"


def _shard(victim: Victim, rng: np.random.Generator) -> str:
    """Change the bytes of a shard's chunks or of its index, with checksums that fit, and all sums above it."""
    record, folder = _folder(victim, rng)
    path = _one(rng, sorted(folder.rglob(SHARD)))
    data = path.read_bytes()
    entry = struct.Struct("<QQ")
    offset, length = entry.unpack(data[-20:-4])
    chunk, index = data[offset : offset + length - 4], [(offset, length)]
    kind = rng.integers(3)
    if kind == 0:
        chunk = _mangled(chunk, rng)
        index = [(0, len(chunk) + 4)]
        what = "chunk mangled"
    elif kind == 1:
        index = [(0, length)] * int(_one(rng, (0, 2, 1000)))
        what = f"{len(index)} chunks"
    else:
        index = [(int(_one(rng, (0, 1, 2**40, 2**63, 2**64 - 1))), int(_one(rng, (0, 1, 2**40, 2**64 - 1))))]
        what = f"index {index}"
    shard = add_checksum(chunk) + add_checksum(b"".join(entry.pack(*one) for one in index))
    _replace(victim, record, folder, {path: shard if rng.random() < 0.9 else _mangled(data, rng)})
    return f"{path.relative_to(victim.path)} {what}"


def _exchange(victim: Victim, rng: np.random.Generator) -> str:
    """Put one object, or one document, in the place of another, with sums that fit."""
    if rng.random() < 0.3:
        one, other = (_one(rng, victim.documents) for _ in range(2))
        victim.write(one, other.read_bytes())
        return f"{one.relative_to(victim.path)} is {other.relative_to(victim.path)}"
    record, folder = _folder(victim, rng)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    one, other = _one(rng, files), _one(rng, files)
    parts = [one, one.with_name(METADATA)] if one.name == SHARD and rng.random() < 0.8 else [one]
    sources = [other.with_name(p.name) for p in parts]
    _replace(victim, record, folder, {p: s.read_bytes() for p, s in zip(parts, sources, strict=True) if s.exists()})
    return f"{one.relative_to(victim.path)} is {other.relative_to(victim.path)}"


def _no_file(victim: Victim, rng: np.random.Generator) -> str:
    """Put nothing, a folder, a link or a pipe in the place of a file."""
    path = _one(rng, sorted(p for p in victim.path.rglob("*") if p.is_file() and not p.is_symlink()))
    kinds: dict[str, Callable[[Path], object]] = {
        "nothing": lambda p: None,
        "a folder": Path.mkdir,
        "a link": lambda p: p.symlink_to("/etc/hostname"),
        "a link to itself": lambda p: p.symlink_to(p.name),
        "endless": lambda p: p.symlink_to("/dev/zero"),
        "a pipe": lambda p: os.mkfifo(p),
        "an empty file": lambda p: p.write_bytes(b""),
    }
    kind = _one(rng, tuple(kinds))
    victim.put(path, kinds[kind])
    return f"{path.relative_to(victim.path)} is {kind}"


def _folder(victim: Victim, rng: np.random.Generator) -> tuple[Path, Path]:
    """Choose a commit record, and return the folder of its objects too."""
    path = _one(rng, victim.records)
    store = victim.path / "exact" if "exact" in path.relative_to(victim.path).parts else victim.path
    return path, store / read_record(path).folder


def _replace(victim: Victim, record: Path, folder: Path, objects: dict[Path, bytes]) -> None:
    """Change objects, and their lengths and sums in the record; the index follows where segments change."""
    document = json.loads(record.read_bytes())
    by_key = {found["key"]: found for found in document["objects"]}
    for path, data in objects.items():
        victim.write(path, data)
        key = path.relative_to(folder).as_posix()
        found = describe(key, data)
        sums = {"key": key, "length": found.length, "crc32c": f"{found.crc32c:08x}", "sha256": found.sha256}
        by_key.setdefault(key, {}).update(sums)
    document["objects"] = sorted(by_key.values(), key=lambda one: one["key"])
    document["digest"] = digest(document)
    victim.write(record, document_bytes(document))


def _one(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]
