"""The end of a run: the index of a complete store, which one process makes, whichever comes to the end last."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_bytes

from gradsae_fast.errors import BusyError
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import open_scores
from gradsae_fast.store.places.durable import create_exclusive, make_folder, storage_errors
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.sidecars.index import CLAIM, INDEX

_POLL_SECONDS = 0.2


def make_index(place: Place, *, tell: Callable[[str], None], wait: float = 0.0, shared: bool = True) -> None:
    """Index a complete store that has no index.

    On a disk, workers that still hold the store keep this one away, and one of them comes last; `wait` is for those
    that were ended and let go within so many seconds. In a bucket, where nobody holds anything, the first of the
    workers to claim the index makes it; a process that does not share its run needs no claim.
    """
    until = time.monotonic() + wait
    claimed = shared and not isinstance(place, Path)
    while open_scores(place).index is None:
        if claimed and not _claim(place):
            tell("no index is made now: another worker is making it; if it was stopped, `gradsae index` makes it")
            return
        try:
            # Who had the claim before may have let go of it, and left the index, since the first look.
            if not claimed or open_scores(place).index is None:
                build_index(place)
        except BusyError as busy:
            if time.monotonic() >= until:
                tell(f"no index is made now: {busy}; the last worker makes it, or `gradsae index`")
                return
            time.sleep(_POLL_SECONDS)
        finally:
            if claimed:
                (place / INDEX / CLAIM).unlink(missing_ok=True)


def _claim(place: Place) -> bool:
    """Whether this process is the one that makes the index, until it deletes the claim."""
    with storage_errors(place):
        make_folder(place / INDEX)
        with suppress(FileExistsError):
            create_exclusive(place / INDEX / CLAIM, token_bytes(16))
            return True
    return False
