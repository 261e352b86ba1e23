"""Extraction against the bare forward and backward pass of the same batches, in one process, taking turns.

Bare: frozen model, a leaf at the lowest site, the head in chunks, one backward; no SAE. Extraction: the same, and
tokenising, splice, encode, decode, project, assembly, and the write of the segment to disk, one after the other (a run
does some of it on other threads). Scores are verified before anything is timed.

    python benchmarks/bench_extract.py --model MODEL --sae SAE --corpus CORPUS --documents 4 --context-length 512
    python benchmarks/bench_extract.py --model MODEL --sae SAE --corpus CORPUS --sites 8 --latents 4096

prints a markdown table and the stages of the last turn for a model of your own; with `--sites`, SAEs of random weights
at so many layers take the place of the given one. Under pytest the shipped demo model is used.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

if __name__ == "__main__":  # called by its path, this file finds the rest of the benchmarks from the repository's root
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.random_saes import random_saes
from gradsae_fast.config import config_from_tables
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.demo import ASSETS
from gradsae_fast.device_clock import clock_of
from gradsae_fast.model.capture import capture
from gradsae_fast.prepare import Prepared, prepare, with_sink_limits
from gradsae_fast.probe import check_run, measure_medians, probe_batches
from gradsae_fast.records import Batch, Segment, TokenDocument
from gradsae_fast.render import show_profile
from gradsae_fast.stages import Recording, each, record, span
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
        segments = read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, others)
        _, documents = next(each("tokenise", segments))
        with ScoreWriter.create_or_resume(
            folder, run={}, identity={}, num_segments=len(prepared.plan.segments)
        ) as writer:
            scores = prepared.score_segment(self.segment.index, documents)
            with span("store"):
                return writer.write(scores).num_bytes

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of one call, all work of the device included."""
        started = time.perf_counter()
        work()
        if self.prepared.lm.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def make_workload(tables: dict[str, Any], sites: int = 0, latents: int = 4096) -> Workload:
    """Prepare a run, pass its gate, and take its first segment; `sites` random SAEs take the place of its own."""
    prepared = prepare(config_from_tables(tables))
    if sites:
        prepared = replace(prepared, sited=_random_sited(prepared, sites, latents))
    prepared = with_sink_limits(prepared, measure_medians(prepared))
    check_run(prepared)
    segment, documents = next(
        iter(read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules))
    )
    windows = [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]
    return Workload(prepared=prepared, segment=segment, documents=documents, batches=prepared.batches(windows))


def _random_sited(prepared: Prepared, sites: int, latents: int) -> tuple[Any, ...]:
    """SAEs of random weights, 64 latents active, at layers spread over the model."""
    lm = prepared.lm
    layers = [(2 * place + 1) * len(lm.layers) // (2 * sites) for place in range(sites)]
    return random_saes(
        lm,
        [lm.site(f"{lm.layers_path}.{layer}") for layer in layers],
        probe_batches(prepared),
        num_latents=latents,
        active=64,
        dtype=torch.float32,
        shared=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the turns gave."""

    bare: float  # median seconds
    extraction: float
    ratio: float  # median of the turns' ratios
    num_bytes: int  # written by one extraction
    stages: Recording  # of one more extraction


def compare(workload: Workload, rounds: int) -> Comparison:
    """Bare pass and extraction, taking turns after one warm-up."""
    times: list[tuple[float, float]] = []
    num_bytes = 0
    with tempfile.TemporaryDirectory() as folder:
        turns = (Path(folder) / str(turn) for turn in range(rounds + 2))
        num_bytes = workload.extraction(next(turns))
        for _ in range(rounds):
            bare = workload.seconds(workload.bare)
            times.append((bare, workload.seconds(lambda: workload.extraction(next(turns)))))
        with record(clock_of(workload.prepared.lm.device)) as stages:
            workload.extraction(next(turns))
    bare, extraction = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(extraction / bare for bare, extraction in times)
    return Comparison(bare=bare, extraction=extraction, ratio=ratio, num_bytes=num_bytes, stages=stages)


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
    parser.add_argument("--preset", default=None)
    parser.add_argument("--sites", type=int, default=0)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    preset = options.preset or ("attribution-patching" if options.sites else "gradsae")
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
                "score": {"preset": preset},
                "run": {"force": bool(options.sites)},  # random weights reconstruct badly, and are for timing alone
            },
            sites=options.sites,
            latents=options.latents,
        )
        found = compare(workload, options.rounds)
    tokens = workload.num_tokens
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {tokens} tokens")
    print("| | seconds | tokens/s | ratio |\n|---|---|---|---|")
    print(f"| bare forward + backward | {found.bare:.2f} | {tokens / found.bare:.0f} | 1 |")
    print(f"| extraction, {preset} | {found.extraction:.2f} | {tokens / found.extraction:.0f} | {found.ratio:.3f} |")
    print(f"\n{found.num_bytes} bytes written\n")
    show_profile(found.stages)


if __name__ == "__main__":
    main()
