"""Work before and behind a loop: the next item is made, and the last one finished, while this one is worked on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

T = TypeVar("T")

_END = object()


def ahead(items: Iterable[T], *, thread: str) -> Iterator[T]:
    """The items in their order, each made on another thread while the one before it is worked on.

    An error of the iterable is raised where its item would have come.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix=thread)
    try:
        making = pool.submit(next, iterator, _END)
        while (item := making.result()) is not _END:
            making = pool.submit(next, iterator, _END)
            yield cast("T", item)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ended(item: object) -> None:
    """In place of work that is no longer done: a method would hold its object, and all that has, in a cycle."""
    raise AssertionError("an item was handed over after the end")


class Behind(Generic[T]):
    """Does `work` on one item at a time, on another thread, while the caller prepares the next one.

    Its errors are raised by the next call of a method here. Leaving the `with` block waits for the item in work, also
    where the block itself failed.
    """

    def __init__(self, work: Callable[[T], object], *, thread: str) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=thread)
        self._in_work: Future[object] | None = None

    def hand_over(self, item: T) -> None:
        """Begin to work on an item, when the one before it is finished."""
        self.finish()
        self._in_work = self._pool.submit(self._work, item)

    def check(self) -> None:
        """Raise the error of work that has failed by now."""
        if self._in_work is not None and self._in_work.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the item in work."""
        in_work, self._in_work = self._in_work, None
        if in_work is not None:
            in_work.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        self._work = _ended
        if error is None:
            self.finish()
        elif self._in_work is not None and (other := self._in_work.exception()) is not None:
            error.add_note(f"besides, what was worked on meanwhile failed: {other}")
