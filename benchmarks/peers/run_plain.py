"""Plain hooks, a dense SAE in torch, autograd on the latents: a script that uses no library but transformers."""

from pathlib import Path

from benchmarks.peers.dense import load_model, score, touch
from benchmarks.peers.jumprelu import JumpReluSae
from benchmarks.peers.meter import Meter
from benchmarks.peers.process import read_job


def main(arguments: list[str] | None = None) -> None:
    """Score the workload."""
    job, meter = read_job(arguments), Meter()
    model, sae = load_model(job.workload), JumpReluSae(Path(job.workload.settings.sae))
    if job.tuned:
        model.requires_grad_(False)
        sae.requires_grad_(False)
    touch(model, sae)
    meter.loaded()
    coo = score(job.workload, model, sae, tuned=job.tuned, leaf=True)
    coo.save(job.stored)
    meter.end()
    pairs = coo.pairs()
    num_tokens = len(job.workload.token_id_N)
    job.finish(meter.measures(num_tokens=num_tokens, stored=job.stored, num_pairs=len(pairs.token_Z)), pairs)


if __name__ == "__main__":
    main()
