"""One writer at a time: an advisory lock that the operating system drops when its holder dies, however it dies."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradsae_fast.errors import BusyError, StoreError
from gradsae_fast.store.durable import storage_errors

LOCK_FILE = "writer.lock"


class WriterLock:
    """The right to write to a store, held from construction to `release`. The file stays: deleting it would race.

    Raises:
        BusyError: another process (or another writer of this one) holds it; names its process id.
        StoreError: the file system has no locks.
    """

    def __init__(self, store: Path) -> None:
        self._descriptor = os.open(store / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 64, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(f"{store}: cannot be locked ({error.strerror}); put it on a local disk") from error
            raise BusyError(
                f"{store} is being written by process {holder or 'unknown'}; wait until it ends, or stop it, "
                "and run the same command again"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the writer's lock, so that nothing is committed, dropped or repaired meanwhile.

    Raises:
        BusyError: another process writes to the store.
        StoreError: the store is read-only.
    """
    with storage_errors(store):
        lock = WriterLock(store)
    try:
        yield
    finally:
        lock.release()
