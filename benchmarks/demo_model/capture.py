"""The site of the demo: the output of one decoder layer, read or replaced during a forward pass.

BOS, the first position of every sequence, is an attention sink; it is never read for training and never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaForCausalLM

LAYER = 4


def load_model(folder: Path) -> LlamaForCausalLM:
    """The shipped model computed in float32, parameters frozen."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The shipped tokenizer."""
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer


@contextmanager
def site_output(model: LlamaForCausalLM, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block, the layer's output `[B, T, D]` is what `change` returns for it."""

    def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return change(output)

    handle = model.model.layers[LAYER].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def after_bos(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same change with the first position passed through."""

    def changed(hidden_BTD: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden_BTD[:, :1], change(hidden_BTD[:, 1:])], dim=1)

    return changed


@torch.no_grad()
def hidden_states(model: LlamaForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """`[B, T - 1, D]`: the site's output without BOS. Layers above the site do not run."""
    lower = model.model.layers[: LAYER + 1]
    hidden_BTD = model.model.embed_tokens(ids_BT)
    positions_1T = torch.arange(ids_BT.shape[1])[None]
    rotary = model.model.rotary_emb(hidden_BTD, position_ids=positions_1T)
    for layer in lower:
        hidden_BTD = layer(hidden_BTD, attention_mask=None, position_ids=positions_1T, position_embeddings=rotary)
    return hidden_BTD[:, 1:]
