"""What scripts with hooks and a dense SAE have in common: splice, objective, backward, and the non-zeros kept.

Nothing of the engine is used. The SAE is whatever has `encode` and `decode`.

Letters: B documents of a batch, T positions, C latents, D width, V vocabulary, Z active latents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.peers.pairs import Coo
from benchmarks.peers.workload import NO_TARGET, Batch, Workload


class DenseSae(Protocol):
    """An SAE as its users see it."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Hidden states [B, T, D] -> latents [B, T, C]."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """Latents [B, T, C] -> reconstruction [B, T, D]."""


def load_model(workload: Workload) -> Any:
    """The language model, its parameters trainable as transformers gives them, and the threads that are asked for."""
    if workload.settings.threads:
        torch.set_num_threads(workload.settings.threads)
    return AutoModelForCausalLM.from_pretrained(workload.settings.model, dtype=torch.float32)


def touch(*modules: torch.nn.Module) -> None:
    """Read every weight once: those that lie in a mapped file enter memory now and are part of what was loaded."""
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                weight.sum()


class Splice:
    """A forward hook that puts the reconstruction in place of the hidden state where the workload says so.

    After the forward pass `latents_BTC` holds what was decoded, and after the backward pass its gradient. With `leaf`
    the graph begins at the latents; else it goes on through the encoder, as far as parameters are trainable.
    """

    def __init__(self, sae: DenseSae, *, leaf: bool, detach_hidden: bool = False) -> None:
        self.sae, self.leaf, self.detach_hidden = sae, leaf, detach_hidden
        self.spliced_BT: Tensor | None = None
        self.latents_BTC: Tensor | None = None

    def __call__(self, _module: Any, _args: Any, output: Any) -> Any:
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        if self.detach_hidden:
            hidden_BTD = hidden_BTD.detach()
        latents_BTC = self.sae.encode(hidden_BTD)
        if self.leaf:
            latents_BTC = latents_BTC.detach().requires_grad_()
        else:
            latents_BTC.retain_grad()
        assert self.spliced_BT is not None
        self.latents_BTC = latents_BTC
        spliced_BTD = torch.where(self.spliced_BT[..., None], self.sae.decode(latents_BTC), hidden_BTD)
        return (spliced_BTD, *output[1:]) if isinstance(output, tuple) else spliced_BTD

    @contextmanager
    def at(self, module: torch.nn.Module) -> Iterator[None]:
        """In force at a module."""
        handle = module.register_forward_hook(self)
        try:
            yield
        finally:
            handle.remove()


def log_likelihood(logits_BTV: Tensor, label_BT: Tensor) -> Tensor:
    """The objective: the sum of log p over all tokens that are to be predicted."""
    logits_RV, label_R = logits_BTV[:, :-1].flatten(0, 1), label_BT[:, 1:].flatten()
    return -F.cross_entropy(logits_RV, label_R, ignore_index=NO_TARGET, reduction="sum")


def score(workload: Workload, model: Any, sae: DenseSae, *, tuned: bool, leaf: bool) -> Coo:
    """Influences of all documents, as users write it or tuned.

    As users write it: documents in corpus order, an attention mask for the padding, trainable parameters whose
    gradients are computed and thrown away, the product of latents and gradients dense. Tuned: parameters frozen,
    documents of similar length together, no mask (padding on the right is not seen by a causal model), the product at
    the active latents alone.
    """
    coo, splice = Coo(), Splice(sae, leaf=leaf)
    with splice.at(model.get_submodule(workload.settings.site)):
        for batch in workload.batches(bucketed=tuned):
            splice.spliced_BT = batch.spliced_BT
            mask = {} if tuned else {"attention_mask": batch.real_BT.long()}
            logits_BTV = model(input_ids=batch.token_ids_BT, use_cache=False, **mask).logits
            log_likelihood(logits_BTV, batch.label_BT).backward()
            del logits_BTV
            collect(coo, batch, splice.latents_BTC, tuned=tuned)
            splice.latents_BTC = None
            model.zero_grad()
            if isinstance(sae, torch.nn.Module):
                sae.zero_grad()
    return coo


def collect(coo: Coo, batch: Batch, latents_BTC: Tensor | None, *, tuned: bool) -> None:
    """Keep the active latents of spliced positions, with their influence."""
    assert latents_BTC is not None
    grad_BTC, latents_BTC = latents_BTC.grad, latents_BTC.detach()
    assert grad_BTC is not None
    place_Z3 = ((latents_BTC != 0) & batch.spliced_BT[..., None]).nonzero()
    place = place_Z3.unbind(1)
    activation_Z = latents_BTC[place]
    influence_Z = activation_Z * grad_BTC[place] if tuned else (latents_BTC * grad_BTC)[place]
    coo.add(batch.token_BT, place_Z3, activation_Z, influence_Z)
