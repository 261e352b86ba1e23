"""delphi's caching of activations: LatentCache over rows of tokens, its JumpReLU, its split files. No gradients.

delphi joins documents and cuts the stream into rows of one width, so it pads nothing. The rows here are the documents
of the workload, so that activations can be compared, padded to the longest; all positions count as its tokens.

Letters: B documents of a batch, T positions, C latents, D width, Z active latents.
"""

import contextlib
import importlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from benchmarks.peers.dense import touch
from benchmarks.peers.jumprelu import read_folder
from benchmarks.peers.meter import Meter
from benchmarks.peers.pairs import Pairs
from benchmarks.peers.process import Job, read_job

SPLITS = 5  # delphi's default


def load_sae(folder: Path) -> Any:
    """delphi's JumpReLU; it does not subtract b_dec, so that is folded into b_enc."""
    config, weights = read_folder(folder)
    sae = importlib.import_module("delphi.sparse_coders.custom.gemmascope").JumpReluSae(*weights["W_enc"].shape)
    if config["apply_b_dec_to_input"]:
        shift_C = weights["b_dec"].double() @ weights["W_enc"].double()
        weights["b_enc"] = (weights["b_enc"].double() - shift_C).float()
    sae.load_state_dict({name: weights[name] for name in sae.state_dict()})
    return sae


def main(arguments: list[str] | None = None) -> None:
    """Cache the activations of the workload."""
    job, meter = read_job(arguments), Meter()
    settings = job.workload.settings
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cache_class = importlib.import_module("delphi.latents").LatentCache
    model, sae = AutoModel.from_pretrained(settings.model, dtype=torch.float32), load_sae(Path(settings.sae))
    hookpoint = settings.site.removeprefix("model.")
    rows = job.workload.batch(range(len(job.workload.lengths)))
    touch(model, sae)
    meter.loaded()
    cache = cache_class(model, {hookpoint: sae.encode}, batch_size=settings.documents_per_batch)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        cache.run(rows.token_ids_BT.numel(), rows.token_ids_BT)
    cache.save_splits(n_splits=SPLITS, save_dir=job.stored)
    meter.end()
    finish(job, meter, cache.cache, hookpoint, rows.token_BT)


def finish(job: Job, meter: Meter, found: Any, hookpoint: str, token_BT: Tensor) -> None:
    """Write the measures, and what the cache holds of real tokens."""
    place_Z3, activation_Z = found.latent_locations[hookpoint], found.latent_activations[hookpoint]
    measures = meter.measures(
        num_tokens=token_BT.numel(), stored=job.stored, num_pairs=len(place_Z3), packages=("eai-delphi",)
    )
    token_Z = token_BT[place_Z3[:, 0], place_Z3[:, 1]]
    real_Z = token_Z >= 0
    pairs = Pairs(
        token_Z=token_Z[real_Z].numpy(),
        latent_Z=place_Z3[real_Z, 2].numpy(),
        activation_Z=activation_Z[real_Z].numpy(),
        influence_Z=None,
    )
    job.finish(measures, pairs)


if __name__ == "__main__":
    main()
