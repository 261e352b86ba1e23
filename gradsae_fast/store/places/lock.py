"""Who may write to a store on a disk: one process alone, or the workers of one run together.

The lock is an advisory one that the operating system drops when its holder dies, however it dies. It keeps processes
out of each other's way; that a segment is committed once follows from creating its record exclusively, with any lock or
none. So a bucket, where there is no lock, is written by the rules of workers.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradsae_fast.errors import BusyError, StoreError
from gradsae_fast.store.places.durable import settle_names, storage_errors
from gradsae_fast.store.places.links import refuse_links
from gradsae_fast.store.places.place import Place

LOCK_FILE = "writer.lock"
BEGINNING_SECONDS = 60.0  # a worker waits for the one that begins the store, or makes its index, at most
_POLL_SECONDS = 0.05
_HELD = {errno.EWOULDBLOCK, errno.EACCES}


class WriterLock:
    """The right to write to a store, held from construction to `release`. The file stays: deleting it would race.

    What the holder finds is sure: names that a killed one left are synced first.

    A shared one is that of a worker, beside other workers; while nobody else is there, its holder is `alone` until it
    calls `share`, so that one worker begins a store and clears what killed ones left. In a bucket there is no lock.

    Args:
        store: an existing folder, or a prefix in a bucket.
        shared: whether others may hold a shared one at the same time.
        wait: seconds to wait while another holds it, of a shared one while another is alone.

    Raises:
        BusyError: another process (or another writer of this one) holds it; names its process id.
        StoreError: the file system has no locks.
    """

    def __init__(self, store: Place, *, shared: bool = False, wait: float = 0.0) -> None:
        self.alone = False
        self._store = store
        self._shared = shared
        self._descriptor = -1
        if not isinstance(store, Path):
            return
        refuse_links(store)
        # A link in its place would have the file that it leads to overwritten.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(store / LOCK_FILE, flags, 0o666)
        try:
            self._take(time.monotonic() + wait)
            self._say(f"{os.getpid()} on {socket.gethostname()}")
            settle_names(store)
        except BaseException:
            self.release()
            raise

    def share(self) -> None:
        """Let other workers in; of a lock that is not shared, an error of the caller.

        Raises:
            BusyError: another process took the store at that very moment, and keeps it.
        """
        assert self._shared, "a lock that was taken for one writer alone"
        if self._descriptor < 0 or not self.alone:
            return
        self._say(f"{os.getpid()} on {socket.gethostname()}, one of several workers")
        self.alone = False
        self._wait(fcntl.LOCK_SH, time.monotonic() + BEGINNING_SECONDS)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.alone = False

    def _take(self, until: float) -> None:
        if not self._shared:
            self._wait(fcntl.LOCK_EX, until)
            self.alone = True
        elif self._try(fcntl.LOCK_EX):
            self.alone = True
        else:
            self._wait(fcntl.LOCK_SH, until)

    def _wait(self, kind: int, until: float) -> None:
        while not self._try(kind):
            if time.monotonic() >= until:
                holder = os.pread(self._descriptor, 128, 0).decode("ascii", "replace").strip()
                raise BusyError(
                    f"{self._store} is being written by process {holder or 'unknown'}; wait until it ends, or stop it, "
                    "and run the same command again"
                )
            time.sleep(_POLL_SECONDS)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            raise StoreError(f"{self._store}: cannot be locked ({error.strerror}); put it on a local disk") from error
        return True

    def _say(self, who: str) -> None:
        """Leave the holder's name for those who find the store taken; of several workers, that of the last to come."""
        text = f"{who}\n".encode("ascii", "replace")
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))


@contextmanager
def locked(store: Place, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock, so that nothing is committed, dropped or repaired meanwhile; in a bucket nobody holds it.

    Raises:
        BusyError: another process writes to the store, still after `wait` seconds.
        StoreError: the store is read-only.
    """
    with storage_errors(store):
        lock = WriterLock(store, wait=wait)
    try:
        yield
    finally:
        lock.release()
