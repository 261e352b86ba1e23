"""Measure the end-to-end cases in one process: `python -m benchmarks.gpu.end_to_end`, started by `benchmarks.gpu`.

The files of the result are written anew before and after each case, so that a run that is cut off keeps what it has.
With `--resume` they are read first: a case that was begun and not finished killed its process, and is not tried again.
"""

import argparse
import json
import logging
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.end_to_end import case as cases
from benchmarks.gpu.end_to_end import documents
from benchmarks.gpu.end_to_end.arithmetic import peak_rate
from benchmarks.gpu.end_to_end.case import Case, Outcome, State
from benchmarks.gpu.end_to_end.files import Files
from benchmarks.gpu.end_to_end.measurement import LEAST_TURNS, MOST_TURNS, Bench, waiting
from benchmarks.gpu.end_to_end.random_model import LastModel
from benchmarks.gpu.machine import describe, device_slug, free_bytes, measure_rates
from benchmarks.gpu.shape import DTYPES
from benchmarks.gpu.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


def _begin(options: argparse.Namespace, device: torch.device) -> Files:
    """An empty result, or the one that an earlier process of this run has left."""
    path = options.out / f"{date.today().isoformat()}-{device_slug(device)}-end-to-end.json"
    print(path, flush=True)
    if options.resume and path.exists():
        files = Files(path, json.loads(path.read_text(encoding="utf-8")))
        for outcome in files.outcomes:
            if outcome.state is State.BEGUN:
                files.put(replace(outcome, state=State.FAILED, reason="its process died"))
        return files
    rates, machine = measure_rates(device, small=options.small), describe(device)
    peak, source = peak_rate(machine["device"], rates.product_flops_per_second)
    return Files(
        path,
        {
            "date": date.today().isoformat(),
            "commit": options.commit,
            "machine": {**machine, "is_trial": machine["is_trial"] or options.small},
            "rates": {
                "copy_bytes_per_second": rates.copy_bytes_per_second,
                "product_flops_per_second": rates.product_flops_per_second,
            },
            "peak": {"flops_per_second": peak, "source": source},
            "sae_dtype": options.sae_dtype,
            "attention": {},
            "cases": [],
        },
    )


def run(options: argparse.Namespace, deadline: Deadline, device: torch.device) -> None:
    """Every case that is not done, model after model."""
    files, models = _begin(options, device), LastModel(device, options.attention)
    bench = Bench(
        lm_of=models,
        watch=Stopwatch(device),
        deadline=deadline,
        corpus=documents.SMALL if options.small else documents.FULL,
        sae_dtype=DTYPES[options.sae_dtype],
        most_turns=LEAST_TURNS if options.small else MOST_TURNS,
        total_bytes=_total_bytes(device),
        free_bytes=lambda: free_bytes(device),
    )
    for case in waiting(cases.SMALL if options.small else cases.FULL, files.outcomes):
        files.put(Outcome(case=case, state=State.BEGUN))
        outcome = _outcome(bench, case)
        files.result["attention"].update(models.attention)
        files.put(outcome)
        _empty_cache(device)


def _outcome(bench: Bench, case: Case) -> Outcome:
    """That of measuring; an error becomes the case's, and a device that it has spoiled ends this process."""
    try:
        return bench.measure(case)
    except Exception as error:  # a compiler's or library's error of any type must not take the others with it
        logger.exception("%s", case)
        return Outcome(case=case, state=State.FAILED, reason=f"{type(error).__name__}: {str(error)[:300]}")


def _total_bytes(device: torch.device) -> float:
    return float("inf") if device.type == "cpu" else float(torch.cuda.get_device_properties(device).total_memory)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()  # raises if an error has spoiled the device: then this process is of no more use
        torch.cuda.empty_cache()


def main() -> None:
    """Measure until the time is up."""
    parser = argparse.ArgumentParser(description="Measure the end-to-end cases; started by benchmarks.gpu.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--attention", default=None)
    parser.add_argument("--sae-dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    deadline = Deadline(options.seconds)
    torch.set_float32_matmul_precision("highest")
    if options.small:
        torch.set_num_threads(1)  # at these sizes a second thread is only waited for
    run(options, deadline, torch.device(options.device))


if __name__ == "__main__":
    main()
