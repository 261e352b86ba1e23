"""Tiny random SAEs in SAELens' layout.

Shapes: N tokens, D width of the site, C latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.sae.formats import saelens
from gradsae_fast.sae.formats.saelens_config import KEYS

D, C, N = 12, 40, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder on disk, and what was written to it."""

    folder: Path
    architecture: str
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]


WriteSaelens = Callable[..., Checkpoint]


def random_weights(architecture: str, *, d_in: int = D, d_sae: int = C, seed: int = 0) -> dict[str, Tensor]:
    """Weights on which about half of the latents fire; no two decoder rows have the same norm."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {"W_enc": normal(d_in, d_sae), "W_dec": normal(d_sae, d_in) * 0.3, "b_dec": normal(d_in)}
    weights |= {key: normal(d_sae) * 0.5 for key in KEYS[architecture] if key not in weights}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    return {key: tensor for key, tensor in weights.items() if key in KEYS[architecture]}


@pytest.fixture
def write_saelens(tmp_path: Path) -> WriteSaelens:
    """Write a random SAE of an architecture; `weights` replaces single tensors, other options go to cfg.json."""

    def write(architecture: str, *, weights: Mapping[str, Tensor] | None = None, **options: Any) -> Checkpoint:
        tensors = random_weights(architecture) | dict(weights or {})
        config = ({"k": 5} if "topk" in architecture else {}) | options
        folder = saelens.save(tmp_path / "sae", architecture=architecture, weights=tensors, config=config)
        return Checkpoint(folder=folder, architecture=architecture, weights=tensors, config=config)

    return write


@pytest.fixture
def hidden_ND() -> Tensor:
    """Hidden states of very different norms, off centre."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=generator) * torch.logspace(-2.5, 1, N).unsqueeze(1) + 0.3
