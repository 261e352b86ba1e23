"""Measure the shipped files on the held-out addresses: the model, the autoencoder, and the two spliced together.

Every figure counts each held-out token once, in windows of BOS and up to 255 tokens, computed in float32 from the
files on disk. FVU is the squared error of the reconstruction over the variance around the mean, summed over all
positions but BOS. Spliced and zeroed losses replace the site at every position but BOS.

    python -m benchmarks.demo_model.measure CORPUS MODEL SAE

prints one JSON object. CORPUS holds the held-out addresses only.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from benchmarks.demo_model.capture import after_bos, hidden_states, load_model, load_tokenizer, site_output
from benchmarks.demo_model.sae import Sae, load_sae
from benchmarks.demo_model.sequences import equal_length_batches, tokenise, windows
from benchmarks.demo_model.split import read_addresses


def summed_loss(model: LlamaForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """Nats of every next token, summed."""
    logits_BTV = model(input_ids=ids_BT).logits
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")


@torch.no_grad()
def losses(model: LlamaForCausalLM, sae: Sae, batches: list[torch.Tensor]) -> dict[str, float]:
    """Mean nats per token: clean, with the reconstruction spliced in, with the site zeroed."""
    changes = {"clean": lambda z: z, "spliced": lambda z: sae.decode(sae.encode(z)), "zeroed": torch.zeros_like}
    tokens = sum(ids_BT.shape[0] * (ids_BT.shape[1] - 1) for ids_BT in batches)
    means = {}
    for name, change in changes.items():
        with site_output(model, after_bos(change)):
            means[name] = sum(summed_loss(model, ids_BT).item() for ids_BT in batches) / tokens
    return means


@torch.no_grad()
def reconstruction(model: LlamaForCausalLM, sae: Sae, batches: list[torch.Tensor]) -> dict[str, float]:
    """FVU, active latents per token (mean and maximum), latents that never fire and those on > 20 % of tokens."""
    z_ND = torch.cat([hidden_states(model, ids_BT).flatten(0, 1) for ids_BT in batches])
    error, active = 0.0, []
    fired_C = torch.zeros(sae.threshold_C.numel(), dtype=torch.long)
    for chunk_ND in z_ND.split(4096):
        a_NC = sae.encode(chunk_ND)
        error += (chunk_ND - sae.decode(a_NC)).square().sum().item()
        active.append((a_NC > 0).sum(1))
        fired_C += (a_NC > 0).sum(0)
    l0_N = torch.cat(active).float()
    variance = (z_ND - z_ND.mean(0)).square().sum().item()
    return {
        "fvu": error / variance,
        "l0": l0_N.mean().item(),
        "l0_max": l0_N.max().item(),
        "dead": int((fired_C == 0).sum()),
        "dense": int((fired_C > 0.2 * len(l0_N)).sum()),
    }


def full_pass(model: LlamaForCausalLM, sae: Sae, batches: list[torch.Tensor]) -> dict[str, float]:
    """One spliced forward and backward over the batches, from the loss down to the reconstruction at the site.

    Seconds on the clock, and seconds of processor time over all threads (which a busy machine changes less).
    """

    def leaf(hidden_BTD: torch.Tensor) -> torch.Tensor:
        return sae.decode(sae.encode(hidden_BTD)).requires_grad_()

    clock, processor = time.perf_counter(), time.process_time()
    with site_output(model, after_bos(leaf)):
        for ids_BT in batches:
            summed_loss(model, ids_BT).backward()
    return {
        "clock_seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="JSON Lines of held-out addresses")
    parser.add_argument("model", type=Path, help="transformers folder of the demo model")
    parser.add_argument("sae", type=Path, help="folder of the demo autoencoder")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, sae = load_model(arguments.model), load_sae(arguments.sae)
    addresses = read_addresses(arguments.corpus)
    documents = [ids[:-1] for ids in tokenise(load_tokenizer(arguments.model), addresses)]
    context = model.config.max_position_embeddings
    batches = list(equal_length_batches([w for ids in documents for w in windows(ids, context)], 8))
    tokens, size = sum(map(len, documents)), sum(len(a.text.encode()) for a in addresses)
    loss = losses(model, sae, batches)
    figures = {
        "addresses": len(addresses),
        "tokens": tokens,
        "bytes": size,
        "loss": loss,
        "loss_recovered": (loss["zeroed"] - loss["spliced"]) / (loss["zeroed"] - loss["clean"]),
        "perplexity": math.exp(loss["clean"]),
        "bits_per_byte": loss["clean"] * tokens / size / math.log(2),
        "sae": reconstruction(model, sae, batches),
        "full_pass": full_pass(model, sae, batches),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
