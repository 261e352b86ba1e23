"""Measure all shapes in one process: `python -m benchmarks.gpu.table`, started by `python -m benchmarks.gpu`.

A variant is called once for its answer and its memory, checked against the truth, called again to see how long it
takes, and then takes turns with all others of its shape. An error of one is a line of the table; what kills the process
(a GPU does not survive a bad address) is noted by the process that started this one.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.encoders import FLOOR, products, threshold_encoders, topk_encoders
from benchmarks.gpu.machine import Rates, describe, free_bytes, measure_rates
from benchmarks.gpu.progress import Progress
from benchmarks.gpu.projections import decoders, document_sums, projections
from benchmarks.gpu.row import Row, Status
from benchmarks.gpu.shape import FULL, SMALL, Shape
from benchmarks.gpu.stopwatch import Stopwatch, quantile
from benchmarks.gpu.variant import Variant, WrongAnswer
from benchmarks.gpu.workload import Workload

logger = logging.getLogger(__name__)

LEAST_TURNS, MOST_TURNS = 3, 25
SHAPE_SECONDS = 15.0  # less than this is not worth the making of the operands
WORKLOAD_FACTOR, WORKLOAD_BYTES = 2.5, 3e9  # both weight matrices and room to make them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A variant that answered rightly."""

    variant: Variant
    once_ms: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """The measuring of shapes on a device until the time is up."""

    device: torch.device
    rates: Rates
    watch: Stopwatch
    deadline: Deadline
    progress: Progress
    small: bool

    def measure(self, shape: Shape, seconds: float) -> None:
        """All lines of a shape, in about this time."""
        if not self.deadline.fits(SHAPE_SECONDS):
            return self.progress.give_up(shape, Status.SKIPPED, f"{self.deadline.left():.0f} s were left")
        needed = WORKLOAD_FACTOR * shape.operand_bytes + WORKLOAD_BYTES
        if self.device.type == "cuda" and needed > free_bytes(self.device):
            free = free_bytes(self.device) / 1e9
            reason = f"operands need {needed / 1e9:.0f} GB; {free:.0f} GB of device memory are free"
            return self.progress.give_up(shape, Status.SKIPPED, reason)
        budget = Deadline(min(seconds, self.deadline.left()))
        workload = Workload.random(shape, self.device)
        deaths = self.progress.deaths(shape)
        rows: dict[str, Row] = {}
        ready: dict[str, Candidate] = {}
        for variant in self.variants(workload):
            if variant.key in deaths:
                rows[variant.key] = _missing(shape, variant, Status.FAILED, deaths[variant.key])
                continue
            outcome = self.prepare(shape, variant, budget)
            if isinstance(outcome, Row):
                rows[variant.key] = outcome
            else:
                rows[variant.key] = _missing(shape, variant, Status.SKIPPED, "")
                ready[variant.key] = outcome
        rows.update(self.time(shape, ready, budget))
        for row in rows.values():
            self.progress.write("row", row.as_json())
        return self.progress.write("done", str(shape))

    def variants(self, workload: Workload) -> Iterator[Variant]:
        """In the order of the table; the floor comes first."""
        yield from products(workload)
        yield from threshold_encoders(workload, compiled=not self.small)
        yield from topk_encoders(workload)
        yield from projections(workload)
        yield from document_sums(workload)
        yield from decoders(workload)

    def prepare(self, shape: Shape, variant: Variant, budget: Deadline) -> Row | Candidate:
        """Call it, check it, time one call; or the line that says why not."""
        if variant.missing:
            return _missing(shape, variant, Status.UNAVAILABLE, variant.missing)
        if not budget.fits(variant.needs_seconds):
            return _missing(shape, variant, Status.SKIPPED, f"{budget.left():.0f} s were left of this shape's time")
        if self.device.type == "cuda" and variant.needs_bytes > free_bytes(self.device):
            free = free_bytes(self.device) / 1e9
            reason = f"needs {variant.needs_bytes / 1e9:.0f} GB; {free:.0f} GB of device memory are free"
            return _missing(shape, variant, Status.SKIPPED, reason)
        place = [str(shape), variant.key]
        self.progress.write("begin", place)
        try:
            answer, peak = self.watch.peak_bytes(variant.call)
            variant.check(answer)
            del answer
            once = self.watch.time(variant.call)()
        except torch.OutOfMemoryError as error:
            outcome: Row | Candidate = _missing(shape, variant, Status.SKIPPED, _first_line(error))
        except WrongAnswer as error:
            outcome = _missing(shape, variant, Status.WRONG, str(error))
        except Exception as error:  # a compiler's or library's error of any type must not take the table with it
            logger.exception("%s at %s", variant.key, shape)
            status = Status.FAILED if variant.is_ours else Status.UNAVAILABLE
            outcome = _missing(shape, variant, status, f"{type(error).__name__}: {_first_line(error)}")
        else:
            outcome = Candidate(variant=variant, once_ms=once, peak_bytes=peak)
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # raises if the error has spoiled the device: then this process is of no more use
            torch.cuda.empty_cache()
        self.progress.write("ready", place)
        return outcome

    def time(self, shape: Shape, ready: dict[str, Candidate], budget: Deadline) -> dict[str, Row]:
        """The measured lines, and those for which no three turns fit."""
        rows: dict[str, Row] = {}
        seconds = max(1.0, budget.left())

        def turn_seconds() -> float:
            return sum(one.once_ms for one in ready.values()) / 1e3

        while len(ready) > 1 and LEAST_TURNS * turn_seconds() > seconds:
            slowest = max((key for key in ready if key != FLOOR), key=lambda key: ready[key].once_ms)
            taken = ready.pop(slowest)
            reason = f"right, but one call takes {taken.once_ms / 1e3:.2f} s and {LEAST_TURNS} turns did not fit"
            rows[slowest] = _missing(shape, taken.variant, Status.SKIPPED, reason)
        most = LEAST_TURNS if self.small else MOST_TURNS
        turns = int(min(most, max(LEAST_TURNS, seconds / max(turn_seconds(), 1e-6))))
        calls = {key: one.variant.call for key, one in ready.items()}
        # Where the answers do not fit beside each other, an untimed call first lets the allocator make room.
        crowded = self.device.type == "cuda" and (
            sum(one.peak_bytes or 0 for one in ready.values()) > 0.8 * free_bytes(self.device)
        )
        times = self.watch.turns(calls, turns, primed=crowded)
        floor = quantile(times[FLOOR], 0.5) if FLOOR in times else None
        return rows | {key: self.measured(shape, ready[key], times[key], floor) for key in times}

    def measured(self, shape: Shape, candidate: Candidate, times: list[float], floor: float | None) -> Row:
        """A line with all its numbers."""
        variant, ms = candidate.variant, quantile(times, 0.5)
        return Row(
            shape=shape,
            operator=variant.operator,
            variant=variant.name,
            status=Status.MEASURED,
            turns=len(times),
            ms=ms,
            ms_low=quantile(times, 0.2),
            ms_high=quantile(times, 0.8),
            tflops=variant.flops / ms / 1e9,
            ratio=None if floor is None else ms / floor,
            bytes_moved=variant.bytes_moved,
            copy_share=variant.bytes_moved / (ms / 1e3) / self.rates.copy_bytes_per_second,
            peak_bytes=candidate.peak_bytes,
        )


def _missing(shape: Shape, variant: Variant, status: Status, reason: str) -> Row:
    return Row.missing(shape, variant.operator, variant.name, status, reason)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


def main() -> None:
    """Write the machine and every shape that fits to the progress file."""
    parser = argparse.ArgumentParser(description="Measure the table of the GPU proof; started by benchmarks.gpu.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--progress", type=Path, required=True)
    options = parser.parse_args()
    deadline, device, progress = Deadline(options.seconds), torch.device(options.device), Progress(options.progress)
    torch.set_float32_matmul_precision("highest")
    if options.small:
        torch.set_num_threads(1)  # at these sizes a second thread is only waited for
    with torch.no_grad():
        rates = measure_rates(device, small=options.small)
        if not progress.events("machine"):
            progress.write("machine", describe(device))
            progress.write("rates", [rates.copy_bytes_per_second, rates.product_flops_per_second])
        table = Table(
            device=device,
            rates=rates,
            watch=Stopwatch(device),
            deadline=deadline,
            progress=progress,
            small=options.small,
        )
        waiting = [shape for shape in (SMALL if options.small else FULL) if not progress.is_done(shape)]
        for index, shape in enumerate(waiting):
            # A shape may use twice its even share; what it leaves goes to those after it.
            table.measure(shape, 2 * deadline.left() / (len(waiting) - index + 1))
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
