"""Input normalisation and what undoes it: statistics, the effective decoder row, completeness."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import (
    InputNorm,
    InputStats,
    Threshold,
    normalise_input,
    scale_gradient,
    undo_norm,
    without_latents,
)
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense

NORMS = ["none", "layer_norm", "constant_norm_rescale"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "abstopk"])
def test_autograd_through_the_decoder_gives_the_scaled_gradient(
    architecture: str, norm: str, write_saelens: Any, hidden_ND: Tensor
) -> None:
    sae = load_sae(write_saelens(architecture, normalize_activations=norm).folder)
    _, stats = normalise_input(sae, hidden_ND)
    a_NC = encode_dense(sae, hidden_ND).detach().requires_grad_()
    decoded_ND = decode_dense(sae, a_NC, stats)
    grad_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(2))
    (decoded_ND * grad_ND).sum().backward()
    assert a_NC.grad is not None
    projection_NC = scale_gradient(sae, grad_ND, stats) @ sae.w_dec_CD.T
    torch.testing.assert_close(a_NC.grad, projection_NC, rtol=1e-4, atol=1e-4)
    # The plain decoder row is wrong exactly where statistics are undone.
    assert torch.allclose(projection_NC, grad_ND @ sae.w_dec_CD.T) is (norm == "none")


@pytest.mark.parametrize("norm", NORMS)
def test_influences_of_a_token_sum_to_the_part_of_the_reconstruction_that_latents_explain(
    norm: str, write_saelens: Any, hidden_ND: Tensor
) -> None:
    sae = load_sae(write_saelens("jumprelu", normalize_activations=norm).folder)
    _, stats = normalise_input(sae, hidden_ND)
    a_NC = encode_dense(sae, hidden_ND)
    grad_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(2))
    influence_N = (a_NC * (scale_gradient(sae, grad_ND, stats) @ sae.w_dec_CD.T)).sum(dim=1)
    explained_ND = decode_dense(sae, a_NC, stats) - without_latents(sae, torch.zeros_like(hidden_ND), stats)
    torch.testing.assert_close(influence_N, (grad_ND * explained_ND).sum(dim=1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_of_any_dtype_are_encoded_in_float32(
    dtype: torch.dtype, write_saelens: Any, hidden_ND: Tensor
) -> None:
    sae = load_sae(write_saelens("standard", normalize_activations="layer_norm").folder)
    x_ND, stats = normalise_input(sae, hidden_ND.to(dtype))
    assert stats.scale_N is not None
    assert stats.shift_N is not None
    assert {x_ND.dtype, stats.scale_N.dtype, stats.shift_N.dtype} == {torch.float32}
    assert stats.scale_N.shape == stats.shift_N.shape == (len(hidden_ND),)


def test_layer_norm_adds_its_epsilon_on_the_way_in_and_leaves_it_out_on_the_way_back(write_saelens: Any) -> None:
    sae = load_sae(write_saelens("standard", normalize_activations="layer_norm").folder)
    hidden_ND = torch.tensor([[1e-5, -1e-5] * 6])
    std = 1e-5 * (12 / 11) ** 0.5
    x_ND, stats = normalise_input(sae, hidden_ND)
    torch.testing.assert_close(x_ND, hidden_ND / (std + 1e-5), rtol=1e-4, atol=0)
    torch.testing.assert_close(undo_norm(sae, x_ND, stats), x_ND * std, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_token_is_normalised_alone(norm: str, write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("standard", normalize_activations=norm).folder)
    together = normalise_input(sae, hidden_ND)[0]
    alone = torch.cat([normalise_input(sae, row)[0] for row in hidden_ND.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_hidden_state_of_zeros_stays_finite(norm: str, write_saelens: Any) -> None:
    sae = load_sae(write_saelens("standard", normalize_activations=norm).folder)
    zeros_ND = torch.zeros(2, 12)
    x_ND, stats = normalise_input(sae, zeros_ND)
    assert not x_ND.any()
    assert torch.isfinite(decode_dense(sae, encode_dense(sae, zeros_ND), stats)).all()


def test_hidden_states_of_another_width_are_refused(write_saelens: Any) -> None:
    metadata = {"model_name": "tiny", "hf_hook_name": "model.layers.3"}
    sae = load_sae(write_saelens("standard", metadata=metadata).folder)
    with pytest.raises(SaeError, match=r"\(3, 13\).*expects \[tokens, 12\].*\(tiny, model\.layers\.3\)"):
        normalise_input(sae, torch.zeros(3, 13))


def test_statistics_of_another_sae_are_refused(write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("standard").folder)
    with pytest.raises(SaeError, match="do not belong to this SAE"):
        undo_norm(replace(sae, input_norm=InputNorm.LAYER_NORM), hidden_ND, InputStats())


def test_a_two_sided_rule_has_no_value_map() -> None:
    with pytest.raises(SaeError, match="two-sided"):
        Threshold(threshold_C=torch.ones(2), negative_threshold_C=torch.ones(2), scale_C=torch.ones(2))
