"""Ends of objects that are fetched ahead of who reads them, many at the same time.

Only for objects that are never written anew; of most the end is the whole. A question looks into a few hundred small
objects, and one after the other it would wait for the network as often.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

_KEPT = 256
_THREADS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The last bytes of an object, and the object's length in bytes."""

    data: bytes
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether the object has no more bytes."""
        return len(self.data) == self.length

    def cut(self, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return ranges (offset, length) of the object, or None where they are not all in here."""
        before = self.length - len(self.data)
        if any(offset < before or offset + length > self.length for offset, length in ranges):
            return None
        return [self.data[offset - before : offset - before + length] for offset, length in ranges]


class Tails:
    """The tails that were asked for last, on their way or here.

    Args:
        fetch: gets the tail of a key; an error of it is nobody's until the object itself is read.
    """

    def __init__(self, fetch: Callable[[str], Tail]) -> None:
        self._fetch = fetch
        self._lock = Lock()
        self._kept: OrderedDict[str, Future[Tail]] = OrderedDict()

    def expect(self, key: str) -> None:
        """Begin to fetch a tail."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._pool.submit(self._fetch, key)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def get(self, key: str) -> Tail | None:
        """Return a tail that was expected, waiting for it; None for another one, or where it could not be fetched."""
        if not self._kept:
            return None
        with self._lock:
            tail = self._kept.get(key)
            if tail is None:
                return None
            self._kept.move_to_end(key)
        return None if tail.exception() else tail.result()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="gradsae-ahead")
