"""Where a run's time goes: named spans of work, nested, on any thread.

    with record() as recording:
        with span("encode"):
            ...
    for stage in recording.breakdown(): ...

A span costs a function call while nothing is recorded. Seconds of a stage are its own: what the spans inside it took is
theirs. On a GPU the host only launches work, so spans of the thread that records are measured a second time, by a
clock of the device, and appear as the thread `device`. One recording at a time in a process: it sees all threads.
"""

import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")

_POOL_NUMBER = re.compile(r"_\d+$")  # of a thread in its pool: their seconds are summed

_END = object()
MAX_TRACED = 200_000  # spans that a trace keeps; the breakdown counts all
MAIN = "main"  # the thread that records
DEVICE = "device"
_UNRESOLVED = 1024  # outermost spans whose device times are asked for together


class DeviceClock(Protocol):
    """Marks on what a device is given to do; its zero is when it was made."""

    def mark(self) -> Any:
        """A mark behind all work that was launched so far."""

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks; waits until the device has reached the last one."""

    def moment(self, mark: Any) -> float:
        """From zero to a mark, in seconds; it may be less exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all spans of one name took on one thread, or on the device."""

    name: str
    thread: str
    seconds: float  # without the spans inside them
    calls: int


@dataclass(slots=True, eq=False)
class _Span:
    """One span; `began` and `ended` are moments of the clock, `marks` those of the device."""

    name: str
    began: float
    ended: float = 0.0
    inner: float = 0.0  # seconds of the spans inside it
    marks: tuple[Any, ...] = ()
    children: list["_Span"] = field(default_factory=list)


@contextmanager
def span(name: str) -> Iterator[None]:
    """A piece of work of a stage, as a `with` block or a decorator."""
    recording = _active
    if recording is None:
        yield
        return
    recording.begin(name)
    try:
        yield
    finally:
        recording.end()


def each(name: str, items: Iterable[T]) -> Iterator[T]:
    """The items, with a span around the making of each."""
    iterator = iter(items)
    while True:
        with span(name):
            item = next(iterator, _END)
        if item is _END:
            return
        yield cast("T", item)


@contextmanager
def record(clock: DeviceClock | None = None) -> Iterator["Recording"]:
    """Record all spans until the end of the block. RuntimeError where a recording is under way already."""
    global _active
    if _active is not None:
        raise RuntimeError("spans are being recorded already; end that recording first")
    recording = _active = Recording(clock)
    try:
        yield recording
    finally:
        _active = None
    recording.stop()


class Recording:
    """The spans of a block, summed by stage; the first ones are kept for a trace."""

    def __init__(self, clock: DeviceClock | None) -> None:
        self.seconds = 0.0  # of the whole block, once it has ended
        self._clock = clock
        self._owner = threading.get_ident()
        self._open = threading.local()
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, str], tuple[float, int]] = {}
        self._traced: list[tuple[str, str, float, float]] = []  # name, thread, began, ended
        self._num_spans = 0
        self._unresolved: list[_Span] = []
        self._began = time.perf_counter()

    def begin(self, name: str) -> None:
        """Open a span on this thread."""
        opened = _Span(name, time.perf_counter())
        if self._clock is not None and threading.get_ident() == self._owner:
            opened.marks = (self._clock.mark(),)
        self._stack().append(opened)

    def end(self) -> None:
        """Close the span that this thread opened last."""
        stack = self._stack()
        closed = stack.pop()
        closed.ended = time.perf_counter()
        seconds = closed.ended - closed.began
        if stack:
            stack[-1].inner += seconds
        with self._lock:
            self._add(closed.name, self._thread(), closed.began, closed.ended, seconds - closed.inner)
        if closed.marks and self._clock is not None:
            closed.marks += (self._clock.mark(),)
            (stack[-1].children if stack else self._unresolved).append(closed)
            if len(self._unresolved) >= _UNRESOLVED and not stack:
                self._resolve()

    def stop(self) -> None:
        """The end of the block."""
        self._resolve()
        self.seconds = time.perf_counter() - self._began

    def breakdown(self) -> list[Stage]:
        """Seconds and calls by stage and thread, the thread that records first, the costliest stage of each first."""
        order = {thread: index for index, thread in enumerate(dict.fromkeys(thread for _, thread in self._totals))}
        stages = [
            Stage(name=name, thread=thread, seconds=seconds, calls=calls)
            for (name, thread), (seconds, calls) in self._totals.items()
        ]
        return sorted(stages, key=lambda stage: (stage.thread != MAIN, order[stage.thread], -stage.seconds))

    def write_trace(self, path: Path) -> None:
        """Write the spans as a Chrome trace, which chrome://tracing, Perfetto and speedscope open.

        Source: the Trace Event Format, complete events ("ph": "X"), times in microseconds.
        """
        threads = {
            name: number for number, name in enumerate(dict.fromkeys(thread for _, thread, _, _ in self._traced))
        }
        names = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": name}}
            for name, number in threads.items()
        ]
        spans = [
            {"ph": "X", "name": name, "pid": 0, "tid": threads[thread], "ts": 1e6 * began, "dur": 1e6 * (ended - began)}
            for name, thread, began, ended in self._traced
        ]
        kept = {"spans": self._num_spans, "spans_in_this_trace": len(self._traced)}
        path.write_text(json.dumps({"traceEvents": names + spans, "otherData": kept}), encoding="utf-8")

    def _thread(self) -> str:
        return MAIN if threading.get_ident() == self._owner else threading.current_thread().name

    def _stack(self) -> list[_Span]:
        if not hasattr(self._open, "stack"):
            self._open.stack = []
        stack: list[_Span] = self._open.stack
        return stack

    def _add(self, name: str, thread: str, began: float, ended: float, own: float) -> None:
        kind = _POOL_NUMBER.sub("", thread)
        seconds, calls = self._totals.get((name, kind), (0.0, 0))
        self._totals[name, kind] = (seconds + own, calls + 1)
        self._num_spans += 1
        if len(self._traced) < MAX_TRACED:
            self._traced.append((name, thread, began - self._began, ended - self._began))

    def _resolve(self) -> None:
        """Ask for the device times of the spans that have ended, and forget their events."""
        if self._clock is not None:
            for outermost in self._unresolved:
                self._add_device(self._clock, outermost)
            self._unresolved.clear()

    def _add_device(self, clock: DeviceClock, ended: _Span) -> float:
        """Count a span on the device, and those inside it; its seconds, theirs included."""
        seconds = clock.seconds(*ended.marks)
        began_at = self._began + clock.moment(ended.marks[0])
        inner = sum(self._add_device(clock, child) for child in ended.children)
        with self._lock:
            self._add(ended.name, DEVICE, began_at, began_at + seconds, seconds - inner)
        return seconds


_active: Recording | None = None
