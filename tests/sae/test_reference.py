"""The oracle on rules that no supported file has yet, and its differentiability."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import GroupMax, Threshold, TopK, normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense


def test_a_two_sided_threshold_keeps_the_sign(write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("standard").folder)
    u_NC = hidden_ND @ sae.w_enc_CD.T + sae.bias_C
    high, low = torch.full((40,), 0.5), torch.full((40,), 1.5)
    a_NC = encode_dense(replace(sae, rule=Threshold(threshold_C=high, negative_threshold_C=low)), hidden_ND)
    assert torch.equal(a_NC, u_NC * ((u_NC > 0.5) | (u_NC < -1.5)))
    assert (a_NC < 0).any()


def test_k_of_all_latents_is_relu(write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("standard").folder)
    assert torch.equal(encode_dense(replace(sae, rule=TopK(k=40)), hidden_ND), encode_dense(sae, hidden_ND))


def test_one_group_is_the_largest_latent_and_groups_of_one_are_relu(write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("standard").folder)
    one, all_alone = (replace(sae, rule=GroupMax(groups=groups)) for groups in (1, 40))
    assert torch.equal(encode_dense(one, hidden_ND), encode_dense(replace(sae, rule=TopK(k=1)), hidden_ND))
    assert torch.equal(encode_dense(all_alone, hidden_ND), encode_dense(sae, hidden_ND))


def test_equal_latents_of_a_group_go_to_the_smaller_one(write_saelens: Any) -> None:
    b_enc = torch.tensor([0.0, 2.0, 2.0, 1.0] * 5 + [-1.0, -2.0, 0.0, 0.0] * 5)
    exact = {"W_enc": torch.zeros(12, 40), "b_enc": b_enc, "b_dec": torch.zeros(12)}
    sae = replace(load_sae(write_saelens("standard", weights=exact).folder), rule=GroupMax(groups=10))
    assert encode_dense(sae, torch.ones(1, 12)).nonzero()[:, 1].tolist() == [1, 5, 9, 13, 17]


def test_a_skip_connection_needs_what_the_encoder_reads(write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("standard", normalize_activations="layer_norm").folder)
    skip_DD = torch.randn(12, 12, generator=torch.Generator().manual_seed(2))
    x_ND, stats = normalise_input(sae, hidden_ND)
    a_NC = encode_dense(sae, hidden_ND)
    with pytest.raises(SaeError, match="pass x_ND"):
        decode_dense(replace(sae, w_skip_DD=skip_DD), a_NC, stats)
    assert stats.scale_N is not None
    added_ND = decode_dense(replace(sae, w_skip_DD=skip_DD), a_NC, stats, x_ND) - decode_dense(sae, a_NC, stats)
    torch.testing.assert_close(added_ND, x_ND @ skip_DD * stats.scale_N[:, None], rtol=1e-4, atol=1e-4)


def test_encoding_is_differentiable_through_the_active_latents(write_saelens: Any, hidden_ND: Tensor) -> None:
    for architecture in ("jumprelu", "topk"):
        sae = load_sae(write_saelens(architecture).folder)
        leaf_ND = hidden_ND.clone().requires_grad_()
        a_NC = encode_dense(sae, leaf_ND)
        a_NC.sum().backward()
        assert leaf_ND.grad is not None
        expected_ND = (a_NC != 0).float() @ sae.w_enc_CD
        torch.testing.assert_close(leaf_ND.grad, expected_ND, rtol=1e-4, atol=1e-4)
