"""Every SAELens family, with and without b_dec at the input, in every normalisation, against its published formula.

The formulas are written per family from the publications, in float64, without the canonical form.
Shapes: N tokens, D width of the site, C latents.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.sae.canonical import normalise_input, scale_gradient
from gradsae_fast.sae.formats import saelens
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense

FACTOR = 0.37
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "jumprelu": ("jumprelu", {}),
    "topk": ("topk", {}),
    "topk rescaled": ("topk", {"rescale_acts_by_decoder_norm": True}),
    "abstopk": ("abstopk", {}),
    "abstopk rescaled": ("abstopk", {"rescale_acts_by_decoder_norm": True}),
}
NORMS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")


@dataclass(frozen=True, slots=True, kw_only=True)
class Normaliser:
    """A normalisation as published: into the SAE's units, back, and what a decoder row is multiplied by on the way."""

    enter: Callable[[Tensor], Tensor]
    leave: Callable[[Tensor], Tensor]
    row: Callable[[Tensor], Tensor]  # W_dec [C, D] -> the effective rows, [N, C, D] or [C, D]


def normaliser(name: str, z_ND: Tensor, whitening: Mapping[str, Tensor]) -> Normaliser:
    if name == "expected_average_only_in":
        return Normaliser(enter=lambda z: z * FACTOR, leave=lambda x: x / FACTOR, row=lambda w: w / FACTOR)
    if name == "constant_norm_rescale":
        factor = z_ND.shape[1] ** 0.5 / z_ND.norm(dim=1, keepdim=True)
        return Normaliser(enter=lambda z: z * factor, leave=lambda x: x / factor, row=lambda w: w / factor[:, None])
    if name == "layer_norm":
        mean = z_ND.mean(dim=1, keepdim=True)
        std = z_ND.std(dim=1, keepdim=True, correction=1)
        return Normaliser(
            enter=lambda z: (z - mean) / (std + 1e-5), leave=lambda x: x * std + mean, row=lambda w: w * std[:, None]
        )
    if name == "covariance_whitening":
        mean, matrix, inverse = whitening["mean"], whitening["matrix"], whitening["inverse_matrix"]
        return Normaliser(
            enter=lambda z: (z - mean) @ matrix, leave=lambda x: x @ inverse + mean, row=lambda w: w @ inverse
        )
    return Normaliser(enter=lambda z: z, leave=lambda x: x, row=lambda w: w)


def published_code(architecture: str, w: Mapping[str, Tensor], config: Mapping[str, Any], x_ND: Tensor) -> Tensor:
    """Activations by the family's own formula, in float64, from an input in the SAE's units."""
    x_ND = x_ND - w["b_dec"] if config.get("apply_b_dec_to_input", True) else x_ND
    if architecture == "gated":
        gate = ((x_ND @ w["W_enc"] + w["b_gate"]) > 0).double()
        return gate * torch.relu(x_ND @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
    h_NC = x_ND @ w["W_enc"] + w["b_enc"]
    if architecture == "standard":
        return torch.relu(h_NC)
    if architecture == "jumprelu":
        return torch.relu(h_NC) * (h_NC > w["threshold"])
    if config.get("rescale_acts_by_decoder_norm"):
        h_NC = h_NC * w["W_dec"].norm(dim=1)
    index_NK = (h_NC.abs() if architecture == "abstopk" else h_NC).topk(config["k"], dim=1).indices
    value_NK = h_NC.gather(1, index_NK)
    kept_NK = value_NK if architecture == "abstopk" else value_NK.relu()
    return torch.zeros_like(h_NC).scatter(1, index_NK, kept_NK)


def published_rows(w: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    rescaled = config.get("rescale_acts_by_decoder_norm")
    return w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True) if rescaled else w["W_dec"]


def random_whitening(d_in: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    matrix = torch.eye(d_in, dtype=torch.float64) + 0.2 * torch.randn(
        d_in, d_in, generator=generator, dtype=torch.float64
    )
    mean = torch.randn(d_in, generator=generator, dtype=torch.float64)
    return {"mean": mean, "matrix": matrix, "inverse_matrix": torch.linalg.inv(matrix).contiguous()}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_sae_computes_the_published_formula(
    family: str, subtract: bool, norm: str, write_saelens: Any, hidden_ND: Tensor
) -> None:
    architecture, options = FAMILIES[family]
    saved = write_saelens(architecture, apply_b_dec_to_input=subtract, normalize_activations=norm, **options)
    whitening = random_whitening(hidden_ND.shape[1])
    (saved.folder / saelens.SCALER).write_text(json.dumps({"scaling_factor": FACTOR, "has_whitening": True}))
    save_file(whitening, saved.folder / saelens.WHITENING)

    weights = {key: tensor.double() for key, tensor in saved.weights.items()}
    published = normaliser(norm, hidden_ND.double(), whitening)
    code_NC = published_code(architecture, weights, saved.config, published.enter(hidden_ND.double()))
    rows_CD = published_rows(weights, saved.config)
    decoded_ND = published.leave(code_NC @ rows_CD + weights["b_dec"])
    # SAELens folds the scalar before the decoder norms, which then carry it: latents come out in units of 1 / factor.
    unit = FACTOR if options and norm == "expected_average_only_in" else 1.0

    sae = load_sae(saved.folder)
    _, stats = normalise_input(sae, hidden_ND)
    a_NC = encode_dense(sae, hidden_ND)
    assert 0 < (a_NC != 0).sum() < a_NC.numel()
    assert torch.equal(a_NC != 0, code_NC != 0)
    torch.testing.assert_close(a_NC, (code_NC / unit).float(), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(decode_dense(sae, a_NC, stats), decoded_ND.float(), rtol=2e-4, atol=2e-4)

    # The effective decoder row: gradient of <G, ẑ> by one latent, statistics held constant.
    grad_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(3))
    rows_NCD = published.row(rows_CD).expand(len(hidden_ND), -1, -1) * unit
    projection_NC = torch.einsum("nd,ncd->nc", grad_ND.double(), rows_NCD).float()
    torch.testing.assert_close(
        scale_gradient(sae, grad_ND, stats) @ sae.w_dec_CD.T, projection_NC, rtol=2e-4, atol=2e-4
    )
