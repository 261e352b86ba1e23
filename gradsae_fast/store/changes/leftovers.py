"""Folders that no reader looks into, and that still have what was replaced, or what a killed writer was at."""

import re
from collections.abc import Sequence

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.place import Place, key_below
from gradsae_fast.store.records.commits import COMMITS, SEGMENTS, read_commits
from gradsae_fast.store.records.effective import Effective
from gradsae_fast.store.sidecars.exact import FOLDER as EXACT

_ATTEMPT = re.compile(r"\d{6,}-[0-9a-f]{16}", re.ASCII)  # what writers call the folder of a segment
_FEW = 5  # folders that a message names


def unnamed_folders(store: Place, found: Effective) -> list[str]:
    """Return the folders of segments and of exact effects that no record names, below the store.

    Raises:
        StoreError: a record of exact effects is damaged.
    """
    folders = _unnamed(store, store, {record.folder for record in found.records.values()})
    if (store / EXACT).is_dir():
        for room in (store / EXACT, *(path for path in (store / EXACT).iterdir() if path.is_dir())):
            if room.name not in (COMMITS, SEGMENTS):
                records = read_commits(room) if (room / COMMITS).is_dir() else {}
                folders += _unnamed(store, room, {record.folder for record in records.values()})
    return folders


def _unnamed(store: Place, room: Place, named: set[str]) -> list[str]:
    folder = room / SEGMENTS
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    unnamed = [name for name in names if f"{SEGMENTS}/{name}" not in named and _ATTEMPT.fullmatch(name)]
    # A server may go on listing a folder for minutes after its last object was deleted (SeaweedFS does).
    return [f"{key_below(folder, store)}/{name}" for name in unnamed if (folder / name).is_dir()]


def refuse_replaced(store: Place, found: Effective, *, alone: bool) -> None:
    """Refuse to pass over folders that were to be deleted and are still there.

    Beside other writers these are those that had a segment before it was replaced; else all that no record names.

    Raises:
        StoreError: names them.
    """
    left = unnamed_folders(store, found)
    if not alone:
        left = [folder for folder in left if folder in found.superseded]
    if left:
        raise StoreError(
            f"{store}: no reader sees what was replaced any more, but not all of it could be deleted: {listed(left)} "
            "still have scores and texts; see that this user may delete there, then run the same command again, which "
            "deletes them"
        )


def listed(folders: Sequence[str]) -> str:
    """Name the first folders of some."""
    more = f" and {len(folders) - _FEW} more" if len(folders) > _FEW else ""
    return f"{', '.join(folders[:_FEW])}{more}"
