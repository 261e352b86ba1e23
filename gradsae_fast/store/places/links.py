"""Symbolic links in a store: none is followed.

A store's folder, or one above it, may be a link: whoever gives the path decides that. Below it a writer makes folders
and plain files only, so a link there was put by someone else, and leads where they chose: reading through it could show
a file of the reader's, deleting or writing through it could destroy one. Pipes and devices are refused for the same
reason; opening one could also wait for ever.

A bucket has no links; these functions then do nothing.
"""

import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.place import Place

_IS_LINK = {errno.ELOOP, errno.EMLINK}
_PIECE = 1 << 20


class PlainFolders:
    """Folders of one store that were looked at and are no links; each is looked at once.

    Args:
        root: the store's folder, or one below it that is known to be no link.
    """

    __slots__ = ("_root", "_seen")

    def __init__(self, root: Place) -> None:
        self._root = str(root) if isinstance(root, Path) else None
        self._seen = {""}

    def check(self, below: str) -> None:
        """Check a folder and all above it, down from the root; one that does not exist is whoever opens it's to find.

        Args:
            below: path below the root.

        Raises:
            StoreError: one is a link.
        """
        if below in self._seen or self._root is None:
            return
        self.check(below.rpartition("/")[0])
        try:
            mode = os.lstat(f"{self._root}/{below}").st_mode
        except OSError:
            return
        if stat.S_ISLNK(mode):
            raise _is_link(f"{self._root}/{below}")
        self._seen.add(below)


def refuse_links(store: Place) -> None:
    """Check that nothing right below a store is a link: before anything in it is believed, written or deleted.

    Raises:
        StoreError: something is.
        OSError: the folder cannot be listed.
    """
    if not isinstance(store, Path):
        return
    with os.scandir(store) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise _is_link(entry.path)


def folders_in(place: Place) -> set[str]:
    """Return the names of the folders right below a place, by one listing; of one that does not exist, none.

    Links are left out: whoever looks for one finds that it is a link.
    """
    if not isinstance(place, Path):
        return {found.name for found in place.iterdir()}
    try:
        with os.scandir(place) as entries:
            return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def open_plain(path: str, flags: int) -> int:
    """Open a plain file of a store, an `opener` for `open` and `FileIO`.

    Raises:
        StoreError: a link, folder, pipe or device.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _IS_LINK:
            raise _is_link(path) from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise StoreError(f"{path} is a folder, pipe or device; expected a plain file: copy the store again")


def read_plain(path: Place, most: int) -> bytes:
    """Return the bytes of a plain file or of an object, or its first `most` + 1 where it is longer.

    Raises:
        StoreError: a link, folder, pipe or device.
        OSError: it cannot be read.
    """
    if not isinstance(path, Path):
        return path.read_bytes(most)
    with FileIO(str(path), opener=open_plain) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, most) + 1)
        while len(data) <= most and (
            more := file.read(min(most + 1 - len(data), _PIECE))
        ):  # a disk may give less than is asked for
            data += more
    return data


def read_pieces(path: Place) -> Iterator[bytes]:
    """Yield the bytes of a plain file or of an object in pieces of about a MiB, however long it is.

    Raises:
        StoreError: a link, folder, pipe or device.
        OSError: it cannot be read.
    """
    if not isinstance(path, Path):
        yield from path.read_pieces(_PIECE)
        return
    with FileIO(str(path), opener=open_plain) as file:
        while piece := file.read(_PIECE):
            yield piece


def _is_link(path: str) -> StoreError:
    return StoreError(
        f"{path} is a symbolic link; in a store none is followed, since it may lead anywhere: where you trust it, copy "
        "the store with its links resolved (`cp -rL`, `rsync -L`)"
    )
