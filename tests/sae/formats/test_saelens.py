"""SAELens folders: facts, exactness, unfinished runs, earlier releases, and every way to damage a folder."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import InputNorm, Threshold, TopK
from gradsae_fast.sae.formats import saelens
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import encode_dense

FACTOR = 0.37


def test_facts_are_read_from_the_metadata(write_saelens: Any) -> None:
    metadata = {
        "hook_name": "blocks.3.hook_resid_post",
        "hf_hook_name": "model.layers.3",
        "model_name": "tiny",
        "prepend_bos": False,
        "context_size": 128,
        "l0": 32.5,
        "explained_variance": 0.75,
    }
    saved = write_saelens("jumprelu", metadata=metadata)
    facts = load_sae(str(saved.folder)).facts
    assert (facts.source, facts.format, facts.architecture) == (str(saved.folder), "saelens", "jumprelu")
    assert (facts.site, facts.hook_name, facts.model_name) == ("model.layers.3", "blocks.3.hook_resid_post", "tiny")
    assert (facts.prepend_bos, facts.context_size) == (False, 128)
    assert (facts.published_l0, facts.published_fvu) == (32.5, 0.25)
    assert (facts.d_in, facts.num_latents, facts.dtype) == (12, 40, "float32")


def test_a_site_that_the_metadata_does_not_name_stays_unknown(write_saelens: Any) -> None:
    facts = load_sae(write_saelens("topk", metadata={"hook_name": "blocks.3.hook_resid_post"}).folder).facts
    assert facts.site is None
    assert facts.hook_name == "blocks.3.hook_resid_post"


def test_an_activation_equal_to_its_threshold_is_inactive(write_saelens: Any) -> None:
    exact = {"W_enc": torch.ones(12, 40), "b_enc": torch.zeros(40), "b_dec": torch.zeros(12)}
    saved = write_saelens("jumprelu", weights=exact | {"threshold": torch.tensor([12.0, 11.0] * 20)})
    a_NC = encode_dense(load_sae(saved.folder), torch.ones(1, 12))
    assert torch.equal(a_NC, torch.tensor([[0.0, 12.0] * 20]))


def test_top_k_ties_go_to_the_smaller_latent_and_zeros_are_not_active(write_saelens: Any) -> None:
    b_enc = torch.zeros(40)
    b_enc[[3, 7, 9, 20, 21, 30, 33]] = 2.0
    exact = {"W_enc": torch.zeros(12, 40), "b_enc": b_enc, "b_dec": torch.zeros(12)}
    saved = write_saelens("topk", weights=exact)
    a_NC = encode_dense(load_sae(saved.folder), torch.ones(1, 12))
    assert a_NC.nonzero()[:, 1].tolist() == [3, 7, 9, 20, 21]
    saved = write_saelens("topk", weights=exact | {"b_enc": -b_enc})
    assert not encode_dense(load_sae(saved.folder), torch.ones(1, 12)).any()
    saved = write_saelens("abstopk", weights=exact | {"b_enc": -b_enc})
    assert encode_dense(load_sae(saved.folder), torch.ones(1, 12)).nonzero()[:, 1].tolist() == [3, 7, 9, 20, 21]


def test_a_decoder_row_of_zeros_never_fires_under_the_norm_rescale(write_saelens: Any, hidden_ND: Tensor) -> None:
    weights = saelens_weights_with_a_zero_row(write_saelens)
    sae = load_sae(write_saelens("topk", weights=weights, rescale_acts_by_decoder_norm=True).folder)
    assert torch.isfinite(sae.w_dec_CD).all()
    assert not encode_dense(sae, hidden_ND)[:, 4].any()


def saelens_weights_with_a_zero_row(write_saelens: Any) -> dict[str, Tensor]:
    w_dec = write_saelens("topk").weights["W_dec"].clone()
    w_dec[4] = 0
    return {"W_dec": w_dec}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_file_loads_exactly_into_either_dtype(
    dtype: torch.dtype, write_saelens: Any, hidden_ND: Tensor
) -> None:
    whole = write_saelens("jumprelu").weights
    half = {key: tensor.to(dtype) for key, tensor in whole.items() if key != "threshold"}
    folder = write_saelens("jumprelu", weights=half).folder
    sae, as_half = load_sae(folder), load_sae(folder, dtype=dtype)
    assert (sae.w_enc_CD.dtype, as_half.w_enc_CD.dtype, as_half.w_dec_CD.dtype) == (torch.float32, dtype, dtype)
    assert (as_half.facts.dtype, sae.facts.dtype) == (str(dtype).removeprefix("torch."), "float32")
    assert isinstance(as_half.rule, Threshold)
    assert torch.equal(as_half.rule.threshold_C, whole["threshold"])
    assert {as_half.bias_C.dtype, as_half.b_dec_D.dtype, as_half.rule.threshold_C.dtype} == {torch.float32}
    assert torch.equal(sae.w_enc_CD.T, half["W_enc"].float())
    assert torch.equal(encode_dense(sae, hidden_ND), encode_dense(as_half, hidden_ND))


def test_a_large_input_bias_is_folded_with_the_rounded_encoder(write_saelens: Any) -> None:
    """Folded with the exact encoder, it would leave 1000 times the rounding error in every pre-activation."""
    b_dec = torch.full((12,), 1000.0)
    saved = write_saelens("standard", weights={"b_dec": b_dec})
    hidden_ND = b_dec + torch.randn(4, 12, generator=torch.Generator().manual_seed(5))
    rounded = saved.weights["W_enc"].bfloat16().double()
    expected = torch.relu((hidden_ND - b_dec).double() @ rounded + saved.weights["b_enc"])
    a_NC = encode_dense(load_sae(saved.folder, dtype=torch.bfloat16), hidden_ND)
    torch.testing.assert_close(a_NC, expected.float(), rtol=0, atol=0.01)


def test_matrices_are_contiguous_and_independent_of_the_file(write_saelens: Any) -> None:
    saved = write_saelens("standard")
    sae = load_sae(saved.folder)
    assert sae.w_enc_CD.is_contiguous()
    assert sae.w_dec_CD.is_contiguous()
    kept = sae.w_dec_CD.clone()
    save_file({"other": torch.zeros(40, 12)}, saved.folder / saelens.WEIGHTS)
    assert torch.equal(sae.w_dec_CD, kept)


def test_the_digest_follows_weights_configuration_and_a_factor_given_by_hand(write_saelens: Any) -> None:
    def digest(factor: float | None = None, **options: Any) -> str:
        return load_sae(write_saelens("standard", **options).folder, norm_factor=factor).facts.digest

    scaled = {"normalize_activations": "expected_average_only_in"}
    digests = [digest(), digest(apply_b_dec_to_input=False), digest(weights={"b_enc": torch.zeros(40)})]
    digests += [digest(0.5, **scaled), digest(0.25, **scaled)]
    assert len(set(digests)) == 5
    assert digest() == digests[0]


def test_a_missing_input_factor_is_asked_for_and_taken_by_hand(write_saelens: Any, hidden_ND: Tensor) -> None:
    saved = write_saelens("standard", normalize_activations="expected_average_only_in")
    with pytest.raises(SaeError, match="give norm_factor"):
        load_sae(saved.folder)
    by_hand = encode_dense(load_sae(saved.folder, norm_factor=FACTOR), hidden_ND)
    (saved.folder / saelens.SCALER).write_text(json.dumps({"scaling_factor": FACTOR, "has_whitening": False}))
    assert torch.equal(by_hand, encode_dense(load_sae(saved.folder), hidden_ND))
    with pytest.raises(SaeError, match="contradicts"):
        load_sae(saved.folder, norm_factor=FACTOR)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf"), True, "1.0"])
def test_an_impossible_input_factor_is_refused(factor: Any, write_saelens: Any) -> None:
    saved = write_saelens("standard", normalize_activations="expected_average_only_in")
    (saved.folder / saelens.SCALER).write_text(json.dumps({"scaling_factor": factor}))
    with pytest.raises(SaeError, match="positive finite"):
        load_sae(saved.folder)


def test_an_input_factor_without_effect_is_refused(write_saelens: Any) -> None:
    with pytest.raises(SaeError, match="no effect"):
        load_sae(write_saelens("standard").folder, norm_factor=2.0)


def test_missing_whitening_statistics_are_refused(write_saelens: Any) -> None:
    saved = write_saelens("standard", normalize_activations="covariance_whitening")
    with pytest.raises(SaeError, match=r"activation_whitening\.safetensors is missing"):
        load_sae(saved.folder)


def rewrite_weights(saved: Any, **changes: Tensor | None) -> None:
    tensors = load_file(saved.folder / saelens.WEIGHTS) | changes
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, saved.folder / saelens.WEIGHTS)


def test_a_flat_configuration_of_an_early_release_loads_as_today(write_saelens: Any, hidden_ND: Tensor) -> None:
    saved = write_saelens("standard")
    modern = encode_dense(load_sae(saved.folder), hidden_ND)
    flat = {"hook_point": "blocks.1.hook_resid_pre", "d_in": 12, "d_sae": 40, "activation_fn_str": "relu"}
    (saved.folder / saelens.CONFIG).write_text(json.dumps(flat | {"normalize_activations": False}))
    rewrite_weights(saved, scaling_factor=torch.ones(40))
    sae = load_sae(saved.folder)
    assert torch.equal(encode_dense(sae, hidden_ND), modern)
    assert (sae.facts.architecture, sae.facts.hook_name) == ("standard", "blocks.1.hook_resid_pre")
    assert sae.facts.prepend_bos is True
    assert sae.input_norm is InputNorm.NONE


def test_top_k_of_an_early_release_is_not_taken_for_relu(write_saelens: Any) -> None:
    saved = write_saelens("standard")
    flat = {"hook_name": "blocks.1.hook_mlp_out", "d_in": 12, "d_sae": 40, "architecture": "standard"}
    flat |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}
    (saved.folder / saelens.CONFIG).write_text(json.dumps(flat))
    rule = load_sae(saved.folder).rule
    assert rule == TopK(k=7)


def test_a_log_threshold_of_an_early_release_is_exponentiated(write_saelens: Any) -> None:
    saved = write_saelens("jumprelu")
    rewrite_weights(saved, threshold=None, log_threshold=saved.weights["threshold"].log())
    rule = load_sae(saved.folder).rule
    assert isinstance(rule, Threshold)
    torch.testing.assert_close(rule.threshold_C, saved.weights["threshold"])


def test_a_scaling_factor_other_than_one_is_refused(write_saelens: Any) -> None:
    saved = write_saelens("standard")
    rewrite_weights(saved, scaling_factor=torch.full((40,), 1.5))
    with pytest.raises(SaeError, match="multiply it into the rows of W_dec"):
        load_sae(saved.folder)


def test_missing_and_unknown_tensors_are_named(write_saelens: Any) -> None:
    saved = write_saelens("jumprelu")
    rewrite_weights(saved, threshold=None, theta=torch.zeros(40))
    with pytest.raises(SaeError, match=r"lacks threshold and has the unknown theta.*jumprelu"):
        load_sae(saved.folder)


def test_a_transposed_encoder_is_refused_and_not_repaired(write_saelens: Any) -> None:
    saved = write_saelens("standard")
    rewrite_weights(saved, W_enc=saved.weights["W_enc"].T.contiguous())
    with pytest.raises(SaeError, match=r"W_enc .*\(40, 12\), expected \(12, 40\)\. It looks transposed"):
        load_sae(saved.folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_in_any_tensor_are_refused(value: float, write_saelens: Any) -> None:
    for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        saved = write_saelens("jumprelu")
        bad = saved.weights[key].clone()
        bad.view(-1)[3] = value
        rewrite_weights(saved, **{key: bad})
        with pytest.raises(SaeError, match=rf"{key} in .* holds 1 NaN or Inf"):
            load_sae(saved.folder)


def test_negative_thresholds_are_refused_for_jumprelu_only(write_saelens: Any) -> None:
    saved = write_saelens("jumprelu", weights={"threshold": torch.full((40,), -1.0)})
    with pytest.raises(SaeError, match="negative for 40 of 40"):
        load_sae(saved.folder)
    assert (load_sae(write_saelens("gated").folder).rule.threshold_C < 0).any()  # type: ignore[union-attr]


def test_a_truncated_weight_file_is_refused(write_saelens: Any) -> None:
    path = write_saelens("standard").folder / saelens.WEIGHTS
    for size in (0, 4, 200, path.stat().st_size - 10):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(SaeError, match="not a whole safetensors file"):
            load_sae(path.parent)


def test_weights_without_a_configuration_are_refused(write_saelens: Any) -> None:
    saved = write_saelens("standard")
    (saved.folder / saelens.CONFIG).unlink()
    with pytest.raises(SaeError, match=r"cfg\.json is missing"):
        load_sae(saved.folder)


def test_weights_that_overflow_the_dtype_asked_for_are_refused(write_saelens: Any) -> None:
    w_enc = write_saelens("standard").weights["W_enc"].clone()
    w_enc[0, 0] = 1e6
    saved = write_saelens("standard", weights={"W_enc": w_enc})
    with pytest.raises(SaeError, match="overflow float16"):
        load_sae(saved.folder, dtype=torch.float16)
    with pytest.raises(SaeError, match="cannot be kept in int8"):
        load_sae(saved.folder, dtype=torch.int8)


def test_saving_refuses_what_loading_would_refuse(tmp_path: Any, write_saelens: Any) -> None:
    weights = dict(write_saelens("standard").weights)
    with pytest.raises(SaeError, match="cannot save the architecture 'temporal'"):
        saelens.save(tmp_path / "a", architecture="temporal", weights=weights, config={})
    with pytest.raises(SaeError, match="lacks threshold"):
        saelens.save(tmp_path / "b", architecture="jumprelu", weights=weights, config={})
    with pytest.raises(SaeError, match=r"b_enc .* has shape"):
        saelens.save(tmp_path / "c", architecture="standard", weights=weights | {"b_enc": torch.zeros(3)}, config={})
    assert not any((tmp_path / name).exists() for name in "abc")
