"""A disk that can forget: what a process does to a folder is recorded, and replayed as a power cut may have left it.

The model is harsher than any file system in use:

    the bytes of a file are sure up to its last fsync; bytes written later may be there, be cut short, read as zeros, or
    be gone
    a name (made, linked, renamed, removed) is sure after the next fsync of its directory; before it each one, by
    itself and in any order, has happened or has not; a renaming inside a directory is one step

So a file whose directory was not synced may be gone whole, and one whose name is sure may be empty. Reads and locks
change nothing and are not recorded.
"""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

_RECORDED = ("open", "write", "fsync", "close", "link", "unlink", "rename", "replace", "mkdir", "rmdir")


@dataclass(slots=True)
class File:
    """Bytes of a file: up to `sure` they survive whatever happens."""

    content: bytes = b""
    sure: int = 0


@dataclass(slots=True)
class Folder:
    """Names of a folder: the sure ones, and the steps after them that are not. None takes a name away."""

    sure: dict[str, int] = field(default_factory=dict)
    pending: list[dict[str, int | None]] = field(default_factory=list)

    def names(self, happened: Callable[[], bool] = lambda: True) -> dict[str, int]:
        """The names if each pending step happened or not."""
        found: dict[str, int | None] = dict(self.sure)
        for step in self.pending:
            if happened():
                found |= step
        return {name: number for name, number in found.items() if number is not None}


class Disk:
    """The files and folders below one root, known by number as by an inode. Folder 0 holds the root's name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: list[File | Folder] = [Folder()]
        if root.exists():
            self._adopt(root, 0)

    def _adopt(self, path: Path, parent: int) -> None:
        """Take what is there already as sure."""
        node: File | Folder = Folder()
        if path.is_file():
            content = path.read_bytes()
            node = File(content=content, sure=len(content))
        number = self.add(node)
        self.folder(parent).sure[path.name] = number
        if path.is_dir():
            for inner in sorted(path.iterdir()):
                self._adopt(inner, number)

    def add(self, node: File | Folder) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def folder(self, number: int) -> Folder:
        node = self.nodes[number]
        assert isinstance(node, Folder)
        return node

    def find(self, path: Path) -> int:
        """The number of a file or folder as the running process sees it."""
        number = 0
        for name in path.relative_to(self.root.parent).parts:
            number = self.folder(number).names()[name]
        return number

    def step(self, path: Path, target: int | None, gone: Path | None = None) -> None:
        """Give a name to a file or folder, or (None) take it away; `gone`: the name it had in the same folder."""
        step = {path.name: target}
        if gone is not None:
            assert gone.parent == path.parent
            step[gone.name] = None
        self.folder(self.find(path.parent)).pending.append(step)

    def sync(self, number: int) -> None:
        node = self.nodes[number]
        if isinstance(node, Folder):
            node.sure = node.names()
            node.pending.clear()
        else:
            node.sure = len(node.content)

    def write_clone(self, chance: random.Random, target: Path) -> None:
        """Write to `target` (which takes the root's place) what a disk may hold if power fails now."""
        likely = chance.choice((0.0, 0.5, 0.5, 1.0))
        names = self.folder(0).names(lambda: chance.random() < likely)
        if self.root.name in names:
            self._write(names[self.root.name], target, chance, likely)

    def _write(self, number: int, target: Path, chance: random.Random, likely: float) -> None:
        node = self.nodes[number]
        if isinstance(node, File):
            target.write_bytes(_survivor(node, chance))
            return
        target.mkdir()
        for name, inner in node.names(lambda: chance.random() < likely).items():
            self._write(inner, target / name, chance, likely)

    def files(self) -> dict[Path, bytes]:
        """Every file as the running process sees it."""
        return dict(self._files(self.find(self.root), self.root))

    def _files(self, number: int, path: Path) -> Iterator[tuple[Path, bytes]]:
        node = self.nodes[number]
        if isinstance(node, File):
            yield path, node.content
            return
        for name, inner in node.names().items():
            yield from self._files(inner, path / name)


def _survivor(file: File, chance: random.Random) -> bytes:
    sure, late = file.content[: file.sure], file.content[file.sure :]
    cut = chance.randint(0, len(late))
    return sure + chance.choice((b"", late[:cut], bytes(len(late)), late[:cut] + bytes(len(late) - cut), late))


class Recorder:
    """Applies to a `Disk` what this process does to it, and calls `on_step` before each change.

    Args:
        disk: what is changed.
        on_step: is told whether the step makes the names of a folder sure. Where it raises, the step is not done.
    """

    def __init__(self, disk: Disk, on_step: Callable[[bool], None]) -> None:
        self._disk = disk
        self._on_step = on_step
        self._opened: dict[int, int] = {}
        self._lock = threading.RLock()  # the store syncs from several threads
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _RECORDED}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything below the disk's root that goes through `os`; what the file system does at once stays real."""
        patched = {name: getattr(self, name) for name in _RECORDED}
        with mock.patch.multiple(os, **patched), mock.patch.object(shutil, "rmtree", self._remove_tree):
            yield

    def _is_mine(self, path: Any) -> bool:
        root = self._disk.root
        return Path(path) == root.parent or Path(path).is_relative_to(root)

    def open(self, path: Any, flags: int, mode: int = 0o777, **other: Any) -> int:
        if not self._is_mine(path):
            return self._real["open"](path, flags, mode, **other)
        with self._lock:
            if flags & os.O_CREAT and not Path(path).exists():
                self._on_step(False)
                descriptor = self._real["open"](path, flags, mode, **other)
                self._disk.step(Path(path), self._disk.add(File()))
            else:
                descriptor = self._real["open"](path, flags, mode, **other)
            self._opened[descriptor] = self._disk.find(Path(path))
            return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        with self._lock:
            if descriptor in self._opened:
                self._on_step(False)
            written = self._real["write"](descriptor, data)
            if descriptor in self._opened:
                file = self._disk.nodes[self._opened[descriptor]]
                assert isinstance(file, File)
                file.content += bytes(data[:written])
            return written

    def fsync(self, descriptor: int) -> None:
        with self._lock:
            if descriptor in self._opened:
                number = self._opened[descriptor]
                self._on_step(isinstance(self._disk.nodes[number], Folder))
                self._disk.sync(number)
            else:
                self._real["fsync"](descriptor)

    def close(self, descriptor: int) -> None:
        with self._lock:
            self._opened.pop(descriptor, None)
            self._real["close"](descriptor)

    def link(self, source: Any, target: Any, **other: Any) -> None:
        with self._lock:
            self._on_step(False)
            self._real["link"](source, target, **other)
            self._disk.step(Path(target), self._disk.find(Path(source)))

    def rename(self, source: Any, target: Any, **other: Any) -> None:
        self._move("rename", source, target, other)

    def replace(self, source: Any, target: Any, **other: Any) -> None:
        self._move("replace", source, target, other)

    def _move(self, how: str, source: Any, target: Any, other: dict[str, Any]) -> None:
        with self._lock:
            self._on_step(False)
            self._real[how](source, target, **other)
            source, target = Path(source), Path(target)
            number = self._disk.find(source)
            if source.parent == target.parent:
                self._disk.step(target, number, gone=source)
            else:  # two folders, synced apart
                self._disk.step(target, number)
                self._disk.step(source, None)

    def mkdir(self, path: Any, mode: int = 0o777, **other: Any) -> None:
        if not self._is_mine(path):
            self._real["mkdir"](path, mode, **other)
            return
        with self._lock:
            self._on_step(False)
            self._real["mkdir"](path, mode, **other)
            self._disk.step(Path(path), self._disk.add(Folder()))

    def unlink(self, path: Any, **other: Any) -> None:
        self._remove("unlink", path, other)

    def rmdir(self, path: Any, **other: Any) -> None:
        self._remove("rmdir", path, other)

    def _remove(self, how: str, path: Any, other: dict[str, Any]) -> None:
        if not self._is_mine(path):
            self._real[how](path, **other)
            return
        with self._lock:
            self._on_step(False)
            self._real[how](path, **other)
            self._disk.step(Path(path), None)

    def _remove_tree(self, folder: Any, ignore_errors: bool = False) -> None:
        """In place of `shutil.rmtree`, which goes through descriptors of folders."""
        if ignore_errors and not Path(folder).is_dir():
            return
        for inner in sorted(Path(folder).iterdir()):
            self._remove_tree(inner) if inner.is_dir() else self.unlink(inner)
        self.rmdir(folder)
