"""Extraction against the bare forward and backward pass of the same batches, in one process, taking turns.

Bare: frozen model, a leaf at the site, the head in chunks, one backward; no SAE. Extraction: the same, and tokenising,
splice, encode, decode, project, assembly, and the write of the segment to disk. Scores are verified before anything is
timed.

    python benchmarks/bench_extract.py --model MODEL --sae SAE --corpus CORPUS --documents 4 --context-length 512

prints a markdown table for a model of your own; under pytest the shipped demo model is used.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsae_fast.config import config_from_tables
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.demo import ASSETS
from gradsae_fast.model.capture import capture
from gradsae_fast.prepare import Prepared, prepare, with_sink_limits
from gradsae_fast.probe import check_run, measure_medians
from gradsae_fast.records import Batch, Segment, TokenDocument
from gradsae_fast.store import ScoreWriter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """One segment of a run, tokenised, and its batches."""

    prepared: Prepared
    segment: Segment
    documents: list[TokenDocument]
    batches: list[Batch]

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_scored for batch in self.batches)

    def bare(self) -> None:
        """Forward and backward alone."""
        wirings = [one.wiring for one in self.prepared.sited]
        for batch in self.batches:
            capture(self.prepared.lm, batch, wirings, self.prepared.objectives)

    def extraction(self, folder: Path) -> int:
        """Everything that the engine does for the segment; the bytes it wrote."""
        prepared = self.prepared
        others = frozenset(segment.index for segment in prepared.plan.segments) - {self.segment.index}
        _, documents = next(
            iter(read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, others))
        )
        with ScoreWriter.create_or_resume(
            folder, run={}, identity={}, num_segments=len(prepared.plan.segments)
        ) as writer:
            return writer.write(prepared.score_segment(self.segment.index, documents)).num_bytes


def make_workload(tables: dict[str, Any]) -> Workload:
    """Prepare a run, pass its gate, and take its first segment."""
    prepared = prepare(config_from_tables(tables))
    prepared = with_sink_limits(prepared, measure_medians(prepared))
    check_run(prepared)
    segment, documents = next(
        iter(read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules))
    )
    windows = [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]
    return Workload(prepared=prepared, segment=segment, documents=documents, batches=prepared.batches(windows))


def compare(workload: Workload, rounds: int) -> tuple[float, float, int]:
    """Median seconds of the bare pass and of the extraction, taking turns after one warm-up, and bytes written."""
    times: dict[str, list[float]] = {"bare": [], "extraction": []}
    num_bytes = 0
    for turn in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            bare = _seconds(workload.bare)
            started = time.perf_counter()
            num_bytes = workload.extraction(Path(folder) / "scores")
            extraction = time.perf_counter() - started
        if turn:
            times["bare"].append(bare)
            times["extraction"].append(extraction)
    return statistics.median(times["bare"]), statistics.median(times["extraction"]), num_bytes


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _demo_tables(folder: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(ASSETS / "model")},
        "sae": {"path": str(ASSETS / "sae")},
        "corpus": {"path": str(ASSETS / "corpus.jsonl"), "context_length": 256, "overlap": 32, "max_documents": 1},
        "store": {"path": str(folder / "plan")},
    }


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return make_workload(_demo_tables(tmp_path_factory.mktemp("workload")))


def bench_bare_forward_and_backward(benchmark: Any, workload: Workload) -> None:
    benchmark(workload.bare)


def bench_extraction(benchmark: Any, workload: Workload, tmp_path: Path) -> None:
    turns = iter(range(1_000_000))
    assert benchmark(lambda: workload.extraction(tmp_path / str(next(turns)))) > 0


def main() -> None:
    """Print the table for the model, SAE and corpus that were given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(ASSETS / "model"))
    parser.add_argument("--sae", default=str(ASSETS / "sae"))
    parser.add_argument("--corpus", default=str(ASSETS / "corpus.jsonl"))
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--preset", default="gradsae")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workload = make_workload(
            {
                "model": {"path": options.model},
                "sae": {"path": options.sae},
                "corpus": {
                    "path": options.corpus,
                    "max_documents": options.documents,
                    "context_length": options.context_length,
                    "overlap": options.overlap,
                },
                "store": {"path": str(Path(folder) / "plan")},
                "score": {"preset": options.preset},
            }
        )
        bare, extraction, num_bytes = compare(workload, options.rounds)
    tokens = workload.num_tokens
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {tokens} tokens")
    print("| | seconds | tokens/s | ratio |\n|---|---|---|---|")
    print(f"| bare forward + backward | {bare:.2f} | {tokens / bare:.0f} | 1 |")
    print(f"| extraction, {options.preset} | {extraction:.2f} | {tokens / extraction:.0f} | {extraction / bare:.3f} |")
    print(f"\n{num_bytes} bytes written")


if __name__ == "__main__":
    main()
