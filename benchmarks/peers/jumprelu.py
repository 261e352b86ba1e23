"""A JumpReLU SAE in a dozen lines of torch, as a user's script has it, read from a SAELens folder.

Letters: B documents of a batch, T positions, C latents, D width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and weights of a SAELens folder. ValueError unless it is a plain JumpReLU."""
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    plain = {"architecture": "jumprelu", "normalize_activations": "none", "reshape_activations": "none"}
    for name, value in plain.items():
        if config[name] != value:
            raise ValueError(f"{folder}: {name} is {config[name]!r}; expected {value!r}. Choose another SAE.")
    return config, load_file(folder / "sae_weights.safetensors")


class JumpReluSae(nn.Module):
    """Encoder and decoder with trainable parameters; gradients do not reach the threshold."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config, weights = read_folder(folder)
        self.subtract_b_dec = config["apply_b_dec_to_input"]
        self.w_enc_DC = nn.Parameter(weights["W_enc"].float())
        self.w_dec_CD = nn.Parameter(weights["W_dec"].float())
        self.b_enc_C = nn.Parameter(weights["b_enc"].float())
        self.b_dec_D = nn.Parameter(weights["b_dec"].float())
        self.threshold_C = nn.Parameter(weights["threshold"].float())

    def encode(self, x_BTD: Tensor, /) -> Tensor:
        """Latents [B, T, C]."""
        x_BTD = x_BTD - self.b_dec_D if self.subtract_b_dec else x_BTD
        u_BTC = x_BTD @ self.w_enc_DC + self.b_enc_C
        return torch.relu(u_BTC) * (u_BTC > self.threshold_C)

    def decode(self, latents_BTC: Tensor, /) -> Tensor:
        """Reconstruction [B, T, D]."""
        return latents_BTC @ self.w_dec_CD + self.b_dec_D
