"""The SAELens way: its SAE object, loaded by SAELens, spliced through a hook; the latents' gradients by autograd.

As users write it the latents keep their gradient inside the graph (`retain_grad`), which goes on through SAELens's
encoder and the layers below; tuned, the graph begins at the latents.
"""

import importlib
import logging
from typing import Any

from benchmarks.peers.dense import load_model, score, touch
from benchmarks.peers.meter import Meter
from benchmarks.peers.process import read_job


def main(arguments: list[str] | None = None) -> None:
    """Score the workload."""
    job, meter = read_job(arguments), Meter()
    logging.disable(logging.INFO)
    sae: Any = importlib.import_module("sae_lens").SAE.load_from_disk(job.workload.settings.sae)
    model = load_model(job.workload)
    if job.tuned:
        model.requires_grad_(False)
        sae.requires_grad_(False)
    touch(model, sae)
    meter.loaded()
    coo = score(job.workload, model, sae, tuned=job.tuned, leaf=job.tuned)
    coo.save(job.stored)
    meter.end()
    pairs = coo.pairs()
    measures = meter.measures(
        num_tokens=len(job.workload.token_id_N),
        stored=job.stored,
        num_pairs=len(pairs.token_Z),
        packages=("sae-lens",),
    )
    job.finish(measures, pairs)


if __name__ == "__main__":
    main()
