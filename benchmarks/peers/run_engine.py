"""This engine: `extract` itself, with its store on disk.

The work begins when the engine's checks before a run have passed, which is told by its last message before the first
batch; planning belongs to loading. Both happen once for a store, however large the corpus is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.meter import Meter
from benchmarks.peers.pairs import Pairs
from benchmarks.peers.process import Job, read_job
from benchmarks.peers.workload import Workload
from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.extract import extract
from gradsae_fast.store import ScoreStore, open_scores

EXACT_BITS = 23


def engine_config(workload: Workload, store: str, **store_settings: Any) -> ExtractConfig:
    """The workload as a run of the engine, preset `gradsae`."""
    settings = workload.settings
    return config_from_tables(
        {
            "model": {"path": settings.model, "device": "cpu"},
            "sae": {"path": settings.sae, "site": settings.site},
            "corpus": {
                "path": str(workload.folder / "corpus.jsonl"),
                "context_length": settings.context_length,
                "overlap": 0,
            },
            "store": {"path": store, **store_settings},
            "run": {"tokens_per_batch": settings.tokens_per_batch}
            | ({"threads": settings.threads} if settings.threads else {}),
        }
    )


def main(arguments: list[str] | None = None) -> None:
    """Extract the workload."""
    job, meter = read_job(arguments), Meter()
    precision = {"precision_bits": EXACT_BITS} if job.exact else {}
    config = engine_config(job.workload, str(job.stored / "scores.gradsae"), **precision)
    on_message, on_progress, checks = follow(meter)
    extract(config, on_message=on_message, on_progress=on_progress)
    meter.end()
    finish(job, meter, checks())


def follow(meter: Meter) -> tuple[Callable[[str], None], Callable[[Any], None], Callable[[], float]]:
    """What hears the engine's messages and batches, and what then knows the seconds of its checks."""
    seconds: list[float] = []
    begun: list[bool] = []

    def on_message(_text: str) -> None:
        if not meter.load_seconds:
            meter.loaded()
        elif not begun:
            seconds.append(meter.elapsed())
            meter.checked()

    return on_message, lambda _progress: begun.append(True), lambda: sum(seconds)


def finish(job: Job, meter: Meter, checks: float) -> None:
    """Write the measures and the numbers. ValueError where the store masks other tokens than the workload."""
    store = open_scores(job.stored / "scores.gradsae")
    pairs = read_pairs(store, job.workload.settings.site)
    masks = [segment.token_column("mask") for segment in store.segments]
    if not np.array_equal(np.concatenate(masks) == 0, job.workload.spliced_N):
        raise ValueError("the store masks other tokens than the workload; make the workload again")
    measures = meter.measures(
        num_tokens=store.num_tokens,
        stored=job.stored,
        num_pairs=len(pairs.token_Z),
        packages=("gradsae-fast", "numba", "zarr"),
        parts={"checks before the run": checks},
    )
    job.finish(measures, pairs)


def read_pairs(store: ScoreStore, site: str) -> Pairs:
    """All that the store holds of a site."""
    parts, first = [], 0
    for segment in store.segments:
        scores = segment.site(site).by_token()
        (projection_Z,) = scores.projections.values()
        token_Z = first + np.repeat(np.arange(len(scores.indptr) - 1), np.diff(scores.indptr))
        parts.append((token_Z, scores.indices, scores.activation, scores.activation * projection_Z))
        first += segment.num_tokens
    token_Z, latent_Z, activation_Z, influence_Z = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Pairs(token_Z=token_Z, latent_Z=latent_Z, activation_Z=activation_Z, influence_Z=influence_Z)


if __name__ == "__main__":
    main()
