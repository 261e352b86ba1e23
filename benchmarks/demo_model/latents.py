"""Print what latents stand for: their strongest tokens in context, over the held-out addresses.

Two lists: latents drawn at random among those that fire, and those whose mean activation differs most between the
two parties (Welch's t over addresses).

    python -m benchmarks.demo_model.latents CORPUS MODEL SAE

CORPUS holds the held-out addresses only.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from benchmarks.demo_model.capture import hidden_states, load_model, load_tokenizer
from benchmarks.demo_model.sae import load_sae
from benchmarks.demo_model.sequences import tokenise, windows
from benchmarks.demo_model.split import Address, read_addresses


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Every token of the addresses, which address it is in, and its activations."""

    ids_N: torch.Tensor
    address_N: torch.Tensor
    a_NC: torch.Tensor


def read(addresses: list[Address], model_folder: Path, sae_folder: Path) -> Reading:
    """Run the model and the autoencoder over the addresses."""
    model, sae = load_model(model_folder), load_sae(sae_folder)
    context = model.config.max_position_embeddings
    ids, owners, activations = [], [], []
    for index, document in enumerate(tokenise(load_tokenizer(model_folder), addresses)):
        for window in windows(document[:-1], context):
            z_ND = hidden_states(model, torch.tensor([window]))[0]
            ids.append(torch.tensor(window[1:]))
            owners.append(torch.full((len(window) - 1,), index))
            activations.append(sae.encode(z_ND).half())
    return Reading(ids_N=torch.cat(ids), address_N=torch.cat(owners), a_NC=torch.cat(activations))


def address_means(reading: Reading, count: int) -> torch.Tensor:
    """`[addresses, C]`: mean activation per token."""
    return torch.stack([reading.a_NC[reading.address_N == i].float().mean(0) for i in range(count)])


def welch_t(left_AC: torch.Tensor, right_AC: torch.Tensor) -> torch.Tensor:
    """Welch's t of each column; zero where a latent never fires."""
    spread_C = left_AC.var(0) / len(left_AC) + right_AC.var(0) / len(right_AC)
    return torch.nan_to_num((left_AC.mean(0) - right_AC.mean(0)) / spread_C.sqrt(), nan=0.0, posinf=0.0, neginf=0.0)


def context_of(reading: Reading, tokenizer: Tokenizer, position: int, before: int = 6, after: int = 2) -> str:
    """The token in brackets between its neighbours."""
    ids = reading.ids_N.tolist()
    left = tokenizer.decode(ids[max(0, position - before) : position])
    right = tokenizer.decode(ids[position + 1 : position + 1 + after])
    return f"{left}[{tokenizer.decode([ids[position]])}]{right}".replace("\n", " ")


def describe(reading: Reading, tokenizer: Tokenizer, latent: int, top: int = 10) -> str:
    """A latent's firing rate and its strongest tokens in context."""
    column_N = reading.a_NC[:, latent].float()
    rate = (column_N > 0).float().mean().item()
    places = column_N.topk(top).indices.tolist()
    lines = [f"  {column_N[i].item():6.2f}  {context_of(reading, tokenizer, i)}" for i in places if column_N[i] > 0]
    return "\n".join([f"latent {latent}, fires on {rate:.2%} of tokens", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="JSON Lines of held-out addresses")
    parser.add_argument("model", type=Path, help="transformers folder of the demo model")
    parser.add_argument("sae", type=Path, help="folder of the demo autoencoder")
    parser.add_argument("--count", type=int, default=30, help="random latents to print")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    addresses = read_addresses(arguments.corpus)
    reading = read(addresses, arguments.model, arguments.sae)
    tokenizer = load_tokenizer(arguments.model)
    fires_C = (reading.a_NC > 0).sum(0)
    alive = (fires_C >= 10).nonzero().flatten()
    generator = torch.Generator().manual_seed(arguments.seed)
    for latent in alive[torch.randperm(len(alive), generator=generator)[: arguments.count]].tolist():
        print(describe(reading, tokenizer, latent))
    means_AC = address_means(reading, len(addresses))
    republican_A = torch.tensor([address.party == "Republican" for address in addresses])
    t_C = welch_t(means_AC[republican_A], means_AC[~republican_A])
    for title, order in (("Republican", t_C.argsort(descending=True)), ("Democratic", t_C.argsort())):
        print(f"== stronger in {title} addresses")
        for latent in order[:10].tolist():
            print(f"t = {t_C[latent]:.2f}", describe(reading, tokenizer, latent))


if __name__ == "__main__":
    main()
