"""An audit's folder: written beside its place, complete, and then put there in one step.

`audit.json` is written last and makes a folder an audit. Only an audit, with no file in it that it did not write, or an
empty folder is ever replaced. A run holds a lock on its unfinished folder, which the operating system drops when the
run dies, however it dies: the next run to the same place deletes what dead ones left behind.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from gradsae_fast.errors import ConfigError
from gradsae_fast.store.places.durable import storage_errors

MARKER = "audit.json"
FORMAT = "gradsae.audit"
_UNFINISHED = r"\.{}\.(part|old)-[0-9a-f]{{12}}"
_PAGES = re.compile(r"(latents|documents)/\d{6,}\.html|(index|(latents|documents)-\d+)\.html|audit\.json")


class AuditFolder:
    """An audit that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sizes: dict[str, int] = {}  # bytes by file

    def write(self, name: str, data: bytes) -> None:
        """Write one file; `name` is its path in the audit."""
        path = self._path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.sizes[name] = len(data)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the marker: what this audit is, and which files are its own."""
        marker = {"format": FORMAT, "format_version": 1, **facts, "files": sorted(self.sizes)}
        self.write(MARKER, (json.dumps(marker, indent=1, sort_keys=True) + "\n").encode())


@contextmanager
def replaced(folder: Path) -> Iterator[AuditFolder]:
    """Yield a new folder beside `folder` that takes its place at the end, and is deleted where an error comes first.

    Raises:
        ConfigError: `folder` may not be replaced, see `check_folder`.
        StoreError: the disk is full or read-only.
    """
    place = check_folder(folder)
    part, old = (place.with_name(f".{place.name}.{what}-{token_hex(6)}") for what in ("part", "old"))
    with storage_errors(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(place)
        part.mkdir()
        with _locked(part):
            try:
                yield AuditFolder(part)
                _swap(part, place, old)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        if old.exists():
            shutil.rmtree(old)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Yield whether the folder could be locked: not where another run holds it, nor where the disk has no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        is_locked = False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        yield is_locked
    finally:
        os.close(descriptor)


def _remove_leftovers(place: Path) -> None:
    """Delete what killed runs left beside the place; an audit that was moved aside only once there is a newer one."""
    for path in place.parent.iterdir():
        found = re.fullmatch(_UNFINISHED.format(re.escape(place.name)), path.name)
        if not found or path.is_symlink() or not path.is_dir() or (found[1] == "old" and not place.exists()):
            continue
        with _locked(path) as is_locked:
            if is_locked and all(_PAGES.fullmatch(name) for name in _files(path)):
                shutil.rmtree(path)


def _swap(part: Path, place: Path, old: Path) -> None:
    if not place.exists():
        part.rename(place)
        return
    place.rename(old)
    try:
        part.rename(place)
    except OSError:
        old.rename(place)
        raise


def check_folder(folder: Path) -> Path:
    """Return the absolute path of a folder that an audit may be written to.

    Raises:
        ConfigError: it is a file, or has files that are not of an audit.
    """
    place = folder.resolve()
    if not place.exists():
        return place
    if not place.is_dir():
        raise ConfigError(f"{folder} is a file; expected a folder for the audit: choose another -o.")
    foreign = sorted(_files(place) - _own_files(place))
    if foreign:
        raise ConfigError(
            f"{folder} has files that no audit wrote ({foreign[0]!r}, {len(foreign)} in all): an audit replaces its "
            "folder whole. Move them, or choose another -o."
        )
    return place


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _own_files(place: Path) -> set[str]:
    try:
        marker = json.loads((place / MARKER).read_bytes())
    except (OSError, ValueError):
        return set()
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        return set()
    return {str(name) for name in marker.get("files", [])} | {MARKER}
