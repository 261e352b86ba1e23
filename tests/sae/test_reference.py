"""The oracle on rules that no supported file has yet, and its differentiability."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.sae.canonical import Threshold, TopK
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import encode_dense


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


def test_encoding_is_differentiable_through_the_active_latents(write_saelens: Any, hidden_ND: Tensor) -> None:
    for architecture in ("jumprelu", "topk"):
        sae = load_sae(write_saelens(architecture).folder)
        leaf_ND = hidden_ND.clone().requires_grad_()
        a_NC = encode_dense(sae, leaf_ND)
        a_NC.sum().backward()
        assert leaf_ND.grad is not None
        expected_ND = (a_NC != 0).float() @ sae.w_enc_CD
        torch.testing.assert_close(leaf_ND.grad, expected_ND, rtol=1e-4, atol=1e-4)
