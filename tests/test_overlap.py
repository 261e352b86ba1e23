"""Work ahead of a loop and behind it: order, errors where they belong, nothing left running."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from gradsae_fast.overlap import Behind, ahead


def hand_over(work: Callable[[int], object], num_items: int) -> None:
    with Behind(work, thread="store") as behind:
        for item in range(num_items):
            behind.hand_over(item)


def test_items_made_ahead_come_in_their_order() -> None:
    assert list(ahead(range(20), thread="tokens")) == list(range(20))
    assert list(ahead([], thread="tokens")) == []


def test_one_item_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            made.append(item)
            yield item

    for item in ahead(items(), thread="tokens"):
        time.sleep(0.005)
        assert len(made) <= item + 2
    assert len(made) == 10


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise KeyError("third")

    found: list[int] = []
    with pytest.raises(KeyError, match="third"):
        found.extend(ahead(items(), thread="tokens"))
    assert found == [0, 1]


def test_a_loop_that_is_left_leaves_no_thread() -> None:
    before = threading.active_count()
    for item in ahead(range(1000), thread="tokens"):
        if item == 3:
            break
    del item
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_work_behind_is_done_in_order_beside_the_caller() -> None:
    done: list[int] = []
    beside = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            assert beside.wait(5), "the caller goes on while the first item is in work"
        done.append(item)

    with Behind(work, thread="store") as behind:
        behind.hand_over(0)
        beside.set()
        for item in range(1, 10):
            behind.hand_over(item)
    assert done == list(range(10))


def test_the_error_of_work_is_raised_by_the_next_call() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        done.append(item)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hand_over(work, 3)
    assert done == [0]


def test_a_look_finds_an_error_without_waiting() -> None:
    release = threading.Event()

    def work(_item: int) -> None:
        assert release.wait(5)
        raise OSError("disk full")

    def look(behind: Behind[int]) -> None:
        while True:
            behind.check()

    with Behind(work, thread="store") as behind:
        behind.hand_over(0)
        behind.check()
        release.set()
        with pytest.raises(OSError, match="disk full"):
            look(behind)


def test_the_last_error_is_not_lost() -> None:
    def work(_item: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        hand_over(work, 1)


def test_a_caller_that_fails_waits_for_the_item_in_work() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.05)
        done.append(item)
        if item == 1:
            raise OSError("disk full")

    def interrupted(item: int) -> None:
        with Behind(work, thread="store") as behind:
            behind.hand_over(item)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(0)
    with pytest.raises(KeyboardInterrupt) as stopped:
        interrupted(1)
    assert done == [0, 1]
    assert stopped.value.__notes__ == ["besides, what was worked on meanwhile failed: disk full"]


def test_what_worked_behind_a_loop_is_gone_at_its_end_without_the_garbage_collector() -> None:
    class Store:
        """As a run does it: it holds what works behind its loop, which calls a method of its own."""

        def __init__(self) -> None:
            self.storing = Behind(self.write, thread="store")

        def write(self, item: int) -> None: ...

    store = Store()
    gone = weakref.ref(store)
    gc.disable()
    try:
        with store.storing as storing:
            storing.hand_over(1)
        del store, storing
        assert gone() is None
    finally:
        gc.enable()
