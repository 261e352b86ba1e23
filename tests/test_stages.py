"""Where the time went: own seconds of nested spans, other threads, a device's clock, the trace."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradsae_fast import stages
from gradsae_fast.stages import Stage, each, record, span


class Clock:
    """Time that passes only when it is told to; also a device that lags behind the host by `lag` seconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.device = 0.0

    def perf_counter(self) -> float:
        return self.now

    def mark(self) -> float:
        return self.device

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def moment(self, mark: float) -> float:
        return mark


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    return clock


def test_seconds_of_a_stage_are_its_own(clock: Clock) -> None:
    with record() as recording:
        for _ in range(2):
            with span("forward"):
                clock.now += 3
                with span("encode"):
                    clock.now += 1
        clock.now += 2
    assert recording.breakdown() == [
        Stage(name="forward", thread="main", seconds=6, calls=2),
        Stage(name="encode", thread="main", seconds=2, calls=2),
    ]
    assert recording.seconds == 10


def test_a_span_outside_a_recording_is_not_kept() -> None:
    with span("before"):
        pass
    with record() as recording:
        pass
    with span("after"):
        pass
    assert recording.breakdown() == []


def test_a_span_that_fails_is_closed(clock: Clock) -> None:
    @span("outer")
    @span("inner")
    def fail() -> None:
        clock.now += 1
        raise ValueError("no")

    with record() as recording:
        with pytest.raises(ValueError, match="no"):
            fail()
        with span("next"):
            clock.now += 5
    assert [(stage.name, stage.seconds) for stage in recording.breakdown()] == [("next", 5), ("inner", 1), ("outer", 0)]


def test_a_decorated_function_may_run_inside_itself(clock: Clock) -> None:
    @span("walk")
    def walk(depth: int) -> int:
        clock.now += 1
        return depth if depth == 0 else walk(depth - 1)

    with record() as recording:
        assert walk(3) == 0
    assert recording.breakdown() == [Stage(name="walk", thread="main", seconds=4, calls=4)]


def test_the_making_of_items_is_measured_and_their_use_is_not(clock: Clock) -> None:
    def items() -> Iterator[int]:
        for item in range(3):
            clock.now += 1
            yield item

    with record() as recording:
        for _ in each("make", items()):
            clock.now += 10
    assert recording.breakdown() == [Stage(name="make", thread="main", seconds=3, calls=4)]


def test_other_threads_have_lines_of_their_own() -> None:
    def work() -> None:
        with span("store"):
            pass

    with record() as recording, span("forward"):
        thread = threading.Thread(target=work, name="store_0")
        thread.start()
        thread.join()
    assert [(stage.name, stage.thread) for stage in recording.breakdown()] == [("forward", "main"), ("store", "store")]


def test_a_device_is_measured_by_its_own_clock(clock: Clock) -> None:
    with record(clock) as recording, span("forward"):
        clock.now += 1
        clock.device += 7
        with span("encode"):
            clock.device += 2
    on_device = [stage for stage in recording.breakdown() if stage.thread == "device"]
    assert [(stage.name, stage.seconds) for stage in on_device] == [("forward", 7), ("encode", 2)]


def test_the_thread_that_records_is_the_main_one(clock: Clock) -> None:
    found: list[Stage] = []

    def work() -> None:
        with record() as recording, span("forward"):
            clock.now += 1
        found.extend(recording.breakdown())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [Stage(name="forward", thread="main", seconds=1, calls=1)]


def test_an_error_of_the_block_is_not_hidden_by_a_broken_device(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_first: float, _last: float) -> float:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(clock, "seconds", broken)

    def fail() -> None:
        with record(clock), span("forward"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()


def test_two_recordings_at_a_time_are_refused() -> None:
    with record(), pytest.raises(RuntimeError, match="already"), record():
        pass
    with record() as recording:
        assert recording.breakdown() == []


def test_a_trace_has_every_span_at_its_time(clock: Clock, tmp_path: Path) -> None:
    with record() as recording:
        clock.now += 1
        with span("forward"):
            clock.now += 2
            with span("encode"):
                clock.now += 3
    recording.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    spans = {event["name"]: (event["ts"], event["dur"]) for event in trace["traceEvents"] if event["ph"] == "X"}
    assert spans == {"forward": (1e6, 5e6), "encode": (3e6, 3e6)}
    assert trace["otherData"] == {"spans": 2, "spans_in_this_trace": 2}


def test_a_long_trace_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MAX_TRACED", 3)
    with record() as recording:
        for _ in range(5):
            with span("encode"):
                pass
    recording.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"] == {"spans": 5, "spans_in_this_trace": 3}
    assert recording.breakdown()[0].calls == 5
