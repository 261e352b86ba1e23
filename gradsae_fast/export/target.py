"""Where an export goes: made in a hidden folder beside its place, then renamed, so that no half export looks whole.

A killed export leaves a folder named `.tmp-` and some digits beside the target; it can be deleted. (Killed in the
instant between the two steps that put one folder in the place of another, it has the old one in it, as `replaced`.)
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from gradsae_fast.errors import QueryError
from gradsae_fast.store.places.durable import TEMPORARY, storage_errors, sync
from gradsae_fast.store.places.place import disk_path_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    path: Path
    count: int
    unit: str  # what is counted: non-zero, document or latent

    @property
    def num_bytes(self) -> int:
        """Bytes of the file, or of all files of the folder."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)


@contextmanager
def replacing(path: str | Path, *, overwrite: bool, beside: str | Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Yield (result, work): where to make the result, and a folder for scratch files; afterwards rename the result.

    The result may be a file or a folder. Where the block raises, nothing is left. The hidden folder lies beside the
    path, or beside another one of the same disk.

    Raises:
        QueryError: the path is taken and may not be overwritten, or its folder does not exist.
        StoreError: the disk is full or read-only, or the path is an address of object storage.
    """
    target = disk_path_of(path)
    check_target(target, overwrite=overwrite)
    work = Path(beside or target).parent / f"{TEMPORARY}{token_hex(8)}"
    with storage_errors(target.parent):
        work.mkdir()
        try:
            result = work / "result"
            yield result, work
            _settle(result)
            check_target(target, overwrite=overwrite)
            if target.is_dir():
                target.rename(work / "replaced")
            result.replace(target)
            sync(target.parent)
        finally:
            shutil.rmtree(work)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot be written to, before any work is done.

    Raises:
        QueryError: its folder does not exist, or it is taken and may not be overwritten.
    """
    if not path.parent.is_dir():
        raise QueryError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise QueryError(f"{path} exists; expected a new path: choose another one, or pass overwrite (--overwrite)")


def refuse_folder(path: str | Path) -> None:
    """Refuse to put a file in the place of a folder, whatever may be overwritten.

    Raises:
        QueryError: the path is a folder.
    """
    if Path(path).is_dir():
        raise QueryError(f"{path} is a folder; expected the path of a file; give it a name inside the folder")


def check_count(count: int, what: str) -> None:
    """Refuse an export of nothing.

    Raises:
        QueryError: the count is 0.
    """
    if not count:
        raise QueryError(
            f"nothing to export: the chosen documents have no {what}; "
            "choose others, or include masked tokens (include_special, --include-special)"
        )


def _settle(result: Path) -> None:
    for path in [result] if result.is_file() else sorted(result.rglob("*"), reverse=True):
        sync(path)
