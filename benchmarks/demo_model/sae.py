"""The demo's sparse autoencoder: a JumpReLU with the decoder bias subtracted at the input, and its file.

The file is the SAELens 6 folder: `cfg.json` and `sae_weights.safetensors` (`W_enc` [D, C] and `W_dec` [C, D] in
float16; `b_enc` [C], `b_dec` [D] and `threshold` [C] in float32). Computation is in float32.

Letters: N tokens, D model width, C latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Sae:
    """Weights of one autoencoder, float32 in memory."""

    w_enc_DC: torch.Tensor
    w_dec_CD: torch.Tensor
    b_enc_C: torch.Tensor
    b_dec_D: torch.Tensor
    threshold_C: torch.Tensor

    def preactivation(self, z_ND: torch.Tensor) -> torch.Tensor:
        """`(z - b_dec) W_enc + b_enc`, before the threshold."""
        return (z_ND - self.b_dec_D) @ self.w_enc_DC + self.b_enc_C

    def encode(self, z_ND: torch.Tensor) -> torch.Tensor:
        """Activations: the positive pre-activations that are strictly above the threshold, zero elsewhere."""
        u_NC = self.preactivation(z_ND)
        return torch.relu(u_NC) * (u_NC > self.threshold_C)

    def decode(self, a_NC: torch.Tensor) -> torch.Tensor:
        """The reconstruction of the site's output."""
        return a_NC @ self.w_dec_CD + self.b_dec_D


def save_sae(folder: Path, sae: Sae, metadata: dict[str, Any]) -> None:
    """Write the folder. The two matrices are stored in float16, the vectors in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    width, latents = sae.w_enc_DC.shape
    tensors = {
        "W_enc": sae.w_enc_DC.half(),
        "W_dec": sae.w_dec_CD.half(),
        "b_enc": sae.b_enc_C.float(),
        "b_dec": sae.b_dec_D.float(),
        "threshold": sae.threshold_C.float(),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu",
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")


def load_sae(folder: Path) -> Sae:
    """Read the folder back as float32."""
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    return Sae(
        w_enc_DC=tensors["W_enc"],
        w_dec_CD=tensors["W_dec"],
        b_enc_C=tensors["b_enc"],
        b_dec_D=tensors["b_dec"],
        threshold_C=tensors["threshold"],
    )
