"""Train the demo autoencoder on the shipped model: BatchTopK in training, one threshold (JumpReLU) in the file.

Training keeps the `k x batch` largest positive pre-activations of a batch. A latent that has not fired for a while
is dead; the dead ones with the largest pre-activations are asked to explain what the others left over, so that they
come back. Half of every batch comes from addresses since 1930. Decoder rows have unit norm throughout. Activations
are divided by one scale during training, which is folded into the biases and the threshold at the end. The threshold
is the mean, over batches after training and with the rounded weights, of the smallest activation BatchTopK keeps.

    python -m benchmarks.demo_model.train_sae CORPUS MODEL OUT

writes OUT/sae/.

Letters: N tokens of a batch, D model width, C latents, P kept (token, latent) pairs, M dead latents.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from benchmarks.demo_model.capture import LAYER, hidden_states, load_model, load_tokenizer
from benchmarks.demo_model.measure import reconstruction
from benchmarks.demo_model.sae import Sae, save_sae
from benchmarks.demo_model.sequences import MODERN_SINCE, equal_length_batches, one_pass, tokenise, windows
from benchmarks.demo_model.split import Address, read_addresses, split


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that shapes the autoencoder."""

    latents: int = 1536
    k: int = 16
    batch: int = 2048
    steps: int = 2000
    warmup: int = 100
    learning_rate: float = 8e-4
    dead_after_tokens: int = 200_000
    auxiliary_k: int = 96
    auxiliary_weight: float = 1 / 32
    calibration_batches: int = 64
    seed: int = 2026


class Trainee(nn.Module):
    """The four trainable arrays, how many tokens ago each latent fired, and the last batch's smallest kept value."""

    def __init__(self, mean_D: torch.Tensor, recipe: Recipe) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        rows_CD = F.normalize(torch.randn(recipe.latents, mean_D.numel(), generator=generator), dim=1)
        self.w_dec_CD = nn.Parameter(rows_CD)
        self.w_enc_CD = nn.Parameter(rows_CD.clone())
        self.b_enc_C = nn.Parameter(torch.zeros(recipe.latents))
        self.b_dec_D = nn.Parameter(mean_D.clone())
        self.idle_C = torch.zeros(recipe.latents, dtype=torch.long)
        self.smallest = 0.0


def smallest_kept(u_NC: torch.Tensor, k: int, floor: float = 0.0) -> float:
    """The `k x N`-th largest positive pre-activation of the batch, zero if fewer are positive.

    `floor` is a guess from below that saves time and never changes the answer.
    """
    wanted = k * u_NC.shape[0]
    candidates = u_NC[u_NC > floor]
    if candidates.numel() < wanted and floor > 0:
        return smallest_kept(u_NC, k)
    if candidates.numel() <= wanted:
        return 0.0
    return float(torch.kthvalue(candidates, candidates.numel() - wanted + 1).values)


def auxiliary_loss(trainee: Trainee, x_ND: torch.Tensor, residual_ND: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Squared error of the dead latents' account of the residual, relative to the residual itself."""
    dead = (trainee.idle_C > recipe.dead_after_tokens).nonzero().flatten()
    if dead.numel() == 0:
        return torch.zeros(())
    u_NM = torch.addmm(trainee.b_enc_C[dead], x_ND, trainee.w_enc_CD[dead].T)
    values, picks = u_NM.topk(min(recipe.auxiliary_k, dead.numel()), dim=1)
    a_NM = torch.zeros_like(u_NM).scatter(1, picks, torch.relu(values))
    error = (a_NM @ trainee.w_dec_CD[dead] - residual_ND).square().mean()
    return error / residual_ND.square().mean()


def reconstruct(trainee: Trainee, x_ND: torch.Tensor, n_P: torch.Tensor, c_P: torch.Tensor) -> torch.Tensor:
    """Encode and decode only the P kept (token, latent) pairs, sorted by token; gradients reach only their rows."""
    encoder_PD = F.embedding(c_P, trainee.w_enc_CD)
    a_P = torch.relu((x_ND.index_select(0, n_P) * encoder_PD).sum(1) + trainee.b_enc_C[c_P])
    starts_N = torch.searchsorted(n_P, torch.arange(len(x_ND)))
    sums_ND = F.embedding_bag(c_P, trainee.w_dec_CD, starts_N, mode="sum", per_sample_weights=a_P)
    return sums_ND + trainee.b_dec_D


def loss_of(trainee: Trainee, z_ND: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, float]:
    """The training loss of one batch, and its reconstruction part."""
    x_ND = z_ND - trainee.b_dec_D.detach()
    with torch.no_grad():
        u_NC = torch.addmm(trainee.b_enc_C, x_ND, trainee.w_enc_CD.T)
        trainee.smallest = smallest_kept(u_NC, recipe.k, floor=0.8 * trainee.smallest)
        n_P, c_P = (u_NC >= max(trainee.smallest, 1e-6)).nonzero(as_tuple=True)
        trainee.idle_C += len(z_ND)
        trainee.idle_C[c_P] = 0
    residual_ND = z_ND - reconstruct(trainee, x_ND, n_P, c_P)
    reconstruction_loss = residual_ND.square().mean()
    extra = auxiliary_loss(trainee, x_ND, residual_ND.detach(), recipe)
    return reconstruction_loss + recipe.auxiliary_weight * extra, reconstruction_loss.item()


@torch.no_grad()
def keep_rows_unit(trainee: Trainee) -> None:
    """Scale every decoder row back to norm one."""
    trainee.w_dec_CD.copy_(F.normalize(trainee.w_dec_CD, dim=1))


@torch.no_grad()
def drop_radial_gradient(trainee: Trainee) -> None:
    """Remove the part of the decoder's gradient that would only change the rows' norms."""
    rows_CD, gradient_CD = trainee.w_dec_CD, trainee.w_dec_CD.grad
    if gradient_CD is not None:
        gradient_CD -= (gradient_CD * rows_CD).sum(1, keepdim=True) * rows_CD


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, a plateau, a linear fall to zero over the last third."""
    rise = (step + 1) / recipe.warmup
    fall = 3 * (recipe.steps - step) / recipe.steps
    return recipe.learning_rate * min(1.0, rise, fall)


def batches(eras: list[torch.Tensor], recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """Endless `[batch, D]` samples, an equal share from each era."""
    generator = torch.Generator().manual_seed(seed)
    share = recipe.batch // len(eras)
    while True:
        rows = [torch.randint(len(z_ND), (share,), generator=generator) for z_ND in eras]
        yield torch.cat([z_ND.index_select(0, row) for z_ND, row in zip(eras, rows, strict=True)])


def train(eras: list[torch.Tensor], recipe: Recipe) -> Trainee:
    """Fit the autoencoder to scaled activations."""
    samples = batches(eras, recipe, recipe.seed)
    first_ND = torch.cat([next(samples) for _ in range(16)])
    trainee = Trainee(first_ND.mean(0), recipe)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.999), fused=True)
    variance = (first_ND - first_ND.mean(0)).square().mean().item()
    began = time.perf_counter()
    for step, z_ND in zip(range(recipe.steps), samples, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss, error = loss_of(trainee, z_ND, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        drop_radial_gradient(trainee)
        optimizer.step()
        keep_rows_unit(trainee)
        if (step + 1) % 100 == 0:
            dead = int((trainee.idle_C > recipe.dead_after_tokens).sum())
            seconds = time.perf_counter() - began
            print(f"step {step + 1} fvu {error / variance:.4f} dead {dead} seconds {seconds:.0f}", flush=True)
    return trainee


@torch.no_grad()
def finish(trainee: Trainee, scale: float, eras: list[torch.Tensor], recipe: Recipe) -> Sae:
    """Undo the scale, round the matrices as the file will hold them, set the threshold."""
    sae = Sae(
        w_enc_DC=trainee.w_enc_CD.T.half().float(),
        w_dec_CD=trainee.w_dec_CD.half().float(),
        b_enc_C=trainee.b_enc_C * scale,
        b_dec_D=trainee.b_dec_D * scale,
        threshold_C=torch.zeros(recipe.latents),
    )
    samples = islice(batches(eras, recipe, recipe.seed + 1), recipe.calibration_batches)
    kept = [smallest_kept(sae.preactivation(z_ND * scale), recipe.k) for z_ND in samples]
    sae.threshold_C.fill_(sum(kept) / len(kept))
    return sae


def activations(model: LlamaForCausalLM, documents: list[list[int]], recipe: Recipe) -> torch.Tensor:
    """Site outputs of one pass over documents, `[tokens, D]`, BOS left out."""
    context = model.config.max_position_embeddings
    sequences = one_pass(documents, [1] * len(documents), context, random.Random(recipe.seed))
    return torch.cat([hidden_states(model, ids_BT).flatten(0, 1) for ids_BT in equal_length_batches(sequences, 32)])


def by_era(addresses: list[Address]) -> list[list[Address]]:
    """Every sixth address before 1930, and all since."""
    earlier = [address for address in addresses if address.year < MODERN_SINCE]
    return [earlier[::6], [address for address in addresses if address.year >= MODERN_SINCE]]


def held_out_batches(addresses: list[Address], model: LlamaForCausalLM, folder: Path) -> list[torch.Tensor]:
    """The held-out addresses as the measurement reads them."""
    documents = [ids[:-1] for ids in tokenise(load_tokenizer(folder), addresses)]
    sequences = [w for ids in documents for w in windows(ids, model.config.max_position_embeddings)]
    return list(equal_length_batches(sequences, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="JSON Lines of addresses, plain or .gz")
    parser.add_argument("model", type=Path, help="transformers folder of the demo model")
    parser.add_argument("out", type=Path, help="folder for sae/")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--k", type=int, default=Recipe().k)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps, k=arguments.k)
    train_part, held_out = split(read_addresses(arguments.corpus))
    model = load_model(arguments.model)
    tokenizer = load_tokenizer(arguments.model)
    began = time.perf_counter()
    eras = [activations(model, tokenise(tokenizer, part), recipe) for part in by_era(train_part)]
    print(f"{sum(map(len, eras))} activations in {time.perf_counter() - began:.0f} s", flush=True)
    scale = eras[-1].square().mean().sqrt().item()
    for z_ND in eras:
        z_ND /= scale
    sae = finish(train(eras, recipe), scale, eras, recipe)
    figures = reconstruction(model, sae, held_out_batches(held_out, model, arguments.model))
    metadata = {
        "model_name": "gradsae-fast-demo",
        "hook_name": f"blocks.{LAYER}.hook_resid_post",
        "hf_hook_name": f"model.layers.{LAYER}",
        "context_size": model.config.max_position_embeddings,
        "prepend_bos": True,
        "training_architecture": "batchtopk",
        "training_recipe": asdict(recipe),
        "l0": round(figures["l0"], 2),
        "fvu": round(figures["fvu"], 4),
        "license": "MIT",
    }
    save_sae(arguments.out / "sae", sae, metadata)
    print(figures)


if __name__ == "__main__":
    main()
