"""Stores made to do harm: documents and objects changed with every checksum made to fit, and what a process opens."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from gradsae_fast.store.format.codecs import checksum
from gradsae_fast.store.records.objects import ObjectRecord, describe, digest_of

_WATCHED = {"open"} | {
    f"os.{name}" for name in ("listdir", "scandir", "remove", "rename", "link", "mkdir", "rmdir", "truncate")
}
ROOT = Path(__file__).parents[2]
_touched: list[list[Any]] = []


def signed(document: dict[str, Any]) -> bytes:
    """A document with the checksum that fits, however odd it is."""
    body = {key: value for key, value in document.items() if key != "checksum"}
    data = (json.dumps(body, sort_keys=True) + "\n").encode()
    return (json.dumps({**body, "checksum": f"{checksum(data):08x}"}, sort_keys=True) + "\n").encode()


def change_document(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document in place, and its checksum; of a commit record the digest of its objects too."""
    document = json.loads(path.read_bytes())
    change(document)
    if isinstance(document.get("objects"), list):
        document["digest"] = digest(document)
    path.write_bytes(signed(document))


def digest(document: dict[str, Any]) -> Any:
    """The digest that fits the objects, or the one that is there where they are too odd to have one."""
    try:
        return digest_of(
            ObjectRecord(key=one["key"], length=0, crc32c=0, sha256=one["sha256"]) for one in document["objects"]
        )
    except (KeyError, TypeError, AttributeError):
        return document.get("digest")


def change_object(record: Path, store: Path, key: str, data: bytes) -> None:
    """Write other bytes to an object, and its length and sums to the record that lists it."""
    found = describe(key, data)

    def change(document: dict[str, Any]) -> None:
        (store / document["writer"]["folder"] / key).write_bytes(data)
        (listed,) = [one for one in document["objects"] if one["key"] == key]
        listed |= {"length": found.length, "crc32c": f"{found.crc32c:08x}", "sha256": found.sha256}

    change_document(record, change)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    """Set the value at such a path."""
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


@contextmanager
def touching_only(*folders: Path) -> Iterator[None]:
    """Fail where this process opens, lists, makes, renames or deletes what is not in these folders or Python's own."""
    _watcher()
    _touched.append([])
    try:
        yield
    finally:
        touched = _touched.pop()
    allowed = [os.path.realpath(str(folder)) for folder in (*folders, sys.prefix, sys.base_prefix, ROOT)]
    for event, name in touched:
        real = f"{Path(name).parent.resolve()}/{Path(name).name}"
        inside = any(real == folder or real.startswith(f"{folder}/") for folder in [*allowed, "/proc", "/dev/null"])
        assert inside, f"{event} of {name}, which is {real}"


@cache
def _watcher() -> None:
    """An audit hook is for ever; it takes down nothing but inside `touching_only`."""
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _touched and event in _WATCHED:
        paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
        _touched[-1].extend((event, os.fspath(path)) for path in paths if isinstance(path, str | os.PathLike))
