"""Tiny temporal SAEs in SAELens' layout, and their published formula, token by token in float64.

Letters: T tokens of one window, D width, C latents.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

EPS = 1e-6


def temporal_weights(
    width: int, num_latents: int, *, tied: bool = True, num_layers: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Random ones that expect more or less the codes attended to; no two decoder rows have the same norm."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, size: float) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    # SAELens divides codes by 4 D: with smaller rows the latents would add nothing to the reconstruction.
    size = 1.4 * torch.linspace(0.7, 1.3, num_latents)[:, None]
    w_dec = normal(num_latents, width, size=1.0) * size
    weights = {"W_dec": w_dec, "b_dec": normal(width, size=0.3)}
    if not tied:
        weights["W_enc"] = (w_dec + normal(num_latents, width, size=0.5)).T.contiguous()
    for layer in range(num_layers):
        for name in ("q_target", "k_ctx"):
            weights[f"attn_layers.{layer}.{name}.weight"] = normal(num_latents // 4, num_latents, size=0.8)
            weights[f"attn_layers.{layer}.{name}.bias"] = normal(num_latents // 4, size=0.3)
        for name in ("v_ctx", "c_proj"):
            noise_CC = normal(num_latents, num_latents, size=0.05)
            weights[f"attn_layers.{layer}.{name}.weight"] = torch.eye(num_latents) + noise_CC
            weights[f"attn_layers.{layer}.{name}.bias"] = normal(num_latents, size=0.05)
    return weights


def write_temporal(folder: Path, weights: Mapping[str, Tensor], **options: Any) -> Path:
    """The folder that SAELens would write; `options` go to cfg.json."""
    num_latents, width = weights["W_dec"].shape
    config = {
        "architecture": "temporal",
        "d_in": width,
        "d_sae": num_latents,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "n_heads": 2,
        "n_attn_layers": sum(key.endswith("q_target.weight") for key in weights),
        "bottleneck_factor": 4,
        "tied_weights": "W_enc" not in weights,
        "metadata": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config | options), encoding="utf-8")
    return folder


def published(
    weights: Mapping[str, Tensor],
    hidden_TD: Tensor,
    *,
    k: int | None = None,
    factor: float = 1.0,
    subtract: bool = True,
    num_heads: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """(novel codes [T, C], predicted share of the reconstruction [T, D], reconstruction [T, D]) of one window."""
    p = {key: tensor.double() for key, tensor in weights.items()}
    w_dec_CD, w_enc_DC = p["W_dec"], p.get("W_enc", p["W_dec"].T)
    b_dec_D = p["b_dec"] if subtract or "W_enc" in p else torch.zeros_like(p["b_dec"])
    lam = 1 / (4 * len(b_dec_D))
    left_TD = hidden_TD.double() * factor - (b_dec_D if subtract else 0.0)
    predicted_TC = torch.zeros(len(left_TD), len(w_dec_CD), dtype=torch.float64)
    for layer in range(sum(key.endswith("q_target.weight") for key in p)):
        code_TC = (lam * left_TD @ w_enc_DC).relu()
        expected_TC = torch.stack(
            [_attended(p, f"attn_layers.{layer}", code_TC, t, num_heads) for t in range(len(code_TC))]
        )
        expected_TC = expected_TC.relu()
        direction_TD = expected_TC @ w_dec_CD
        scale_T1 = (direction_TD * left_TD).sum(1, keepdim=True) / (direction_TD.norm(dim=1, keepdim=True) + EPS) ** 2
        predicted_TC = predicted_TC + scale_T1 * expected_TC
        left_TD = left_TD - scale_T1 * direction_TD
    novel_TC = (lam * left_TD @ w_enc_DC).relu()
    if k is not None:
        kept_Tk = novel_TC.topk(k, dim=1).indices
        novel_TC = torch.zeros_like(novel_TC).scatter(1, kept_Tk, novel_TC.gather(1, kept_Tk))
    decoded_TD = (novel_TC + predicted_TC) @ w_dec_CD + b_dec_D
    return novel_TC, predicted_TC @ w_dec_CD / factor, decoded_TD / factor


def _attended(p: Mapping[str, Tensor], prefix: str, code_TC: Tensor, token: int, num_heads: int) -> Tensor:
    """What one token finds in an empty code and those of the tokens before it [C]."""

    def mapped(name: str, codes: Tensor) -> Tensor:
        return codes @ p[f"{prefix}.{name}.weight"].T + p[f"{prefix}.{name}.bias"]

    past_TC = torch.cat([torch.zeros_like(code_TC[:1]), code_TC[:token]])
    heads = []
    for query_E, key_TE, value_TE in zip(
        *(
            each.chunk(num_heads, -1)
            for each in (mapped("q_target", code_TC[token]), mapped("k_ctx", past_TC), mapped("v_ctx", past_TC))
        ),
        strict=True,
    ):
        heads.append((key_TE @ query_E / len(query_E) ** 0.5).softmax(0) @ value_TE)
    return mapped("c_proj", torch.cat(heads))
