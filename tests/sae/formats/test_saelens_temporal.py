"""Temporal SAEs of SAELens: prediction from the tokens before, the novel rest, options, and what is refused.

Letters: N tokens of all windows, T of one, D width, C latents.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae import temporal
from gradsae_fast.sae.canonical import InputNorm, Sae, Threshold, TopK, normalise_input, without_latents
from gradsae_fast.sae.fold import StoredSae, Whitening, fold
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import beside_dense, decode_dense, encode_dense
from gradsae_fast.sparse_code import (
    Code,
    chosen_rows,
    drop_rows,
    encode,
    kernels_for,
    of_latents,
    project_gradient,
    reconstruct,
)
from tests.temporal import published, temporal_weights, write_temporal

D, C = 12, 40
LENGTHS = [1, 6, 2, 9]
OPTIONS: list[dict[str, Any]] = [
    {"kval_topk": 5},
    {"kval_topk": None},
    {"kval_topk": 5, "sae_diff_type": "relu"},
    {"kval_topk": 5, "apply_b_dec_to_input": False},
    {"kval_topk": 5, "n_heads": 5},
    {"kval_topk": 5, "normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.37},
]


@pytest.fixture
def hidden_ND() -> Tensor:
    """Windows of tokens of very different norms and similar directions."""
    generator = torch.Generator().manual_seed(1)
    size_N1 = torch.logspace(-1, 1, sum(LENGTHS))[torch.randperm(sum(LENGTHS), generator=generator), None]
    common_D = torch.randn(D, generator=generator)
    return (torch.randn(sum(LENGTHS), D, generator=generator) + 2 * common_D) * size_N1


def dense(code: Code, num_latents: int = C) -> Tensor:
    """The values of a sparse code [N, C]."""
    counts_N = code.rows.indptr.diff()
    row_Z = torch.arange(len(counts_N)).repeat_interleave(counts_N)
    a_NC = torch.zeros(len(counts_N), num_latents)
    a_NC[row_Z, code.rows.indices.long()] = code.rows.values
    return a_NC


def formula(weights: dict[str, Tensor], hidden_ND: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Codes, predicted share and reconstruction of `LENGTHS` windows by the published formula, float32."""
    rescaled = options.get("normalize_activations") == "constant_scalar_rescale"
    parts = [
        published(
            weights,
            window_TD,
            k=options.get("kval_topk") if options.get("sae_diff_type") != "relu" else None,
            factor=options["activation_normalization_factor"] if rescaled else 1.0,
            subtract=options.get("apply_b_dec_to_input", True),
            num_heads=options.get("n_heads", 2),
        )
        for window_TD in hidden_ND.split(LENGTHS)
    ]
    return tuple(torch.cat(each).float() for each in zip(*parts, strict=True))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_loaded_sae_computes_the_published_formula(
    options: dict[str, Any], tied: bool, num_layers: int, hidden_ND: Tensor, tmp_path: Path
) -> None:
    weights = temporal_weights(D, C, tied=tied, num_layers=num_layers)
    sae = load_sae(write_temporal(tmp_path, weights, **options))
    code_NC, predicted_ND, decoded_ND = formula(weights, hidden_ND, options)
    assert (code_NC != 0).sum(1).float().mean() > 3
    assert (predicted_ND.norm(dim=1) / decoded_ND.norm(dim=1)).median() > 0.1

    code = encode(sae, hidden_ND, LENGTHS)
    a_NC = torch.cat([encode_dense(sae, window_TD) for window_TD in hidden_ND.split(LENGTHS)])
    beside_ND = torch.cat([beside_dense(sae, window_TD) for window_TD in hidden_ND.split(LENGTHS)])
    for found_NC in (dense(code), a_NC):
        assert torch.equal(found_NC != 0, code_NC != 0)
        torch.testing.assert_close(found_NC, code_NC, rtol=1e-4, atol=1e-5)
    assert code.beside_ND is not None
    for found_ND in (code.beside_ND, beside_ND):
        torch.testing.assert_close(found_ND, predicted_ND, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reconstruct(sae, code), decoded_ND, rtol=1e-4, atol=1e-4)
    constant_ND = without_latents(sae, beside_ND, code.stats)
    torch.testing.assert_close(of_latents(sae, code) + constant_ND, decoded_ND, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [InputNorm.LAYER_NORM, InputNorm.CONSTANT_NORM])
def test_a_norm_of_each_token_is_applied_before_the_prediction_and_undone_after_it(
    norm: InputNorm, hidden_ND: Tensor, tmp_path: Path
) -> None:
    weights = temporal_weights(D, C)
    names = {InputNorm.LAYER_NORM: "layer_norm", InputNorm.CONSTANT_NORM: "constant_norm_rescale"}
    sae = load_sae(write_temporal(tmp_path, weights, kval_topk=5, normalize_activations=names[norm]))
    assert sae.input_norm is norm
    x_ND, stats = normalise_input(sae, hidden_ND)
    code_NC, _, decoded_ND = formula(weights, x_ND, {"kval_topk": 5})
    code = encode(sae, hidden_ND, LENGTHS)
    torch.testing.assert_close(dense(code), code_NC, rtol=1e-4, atol=1e-5)
    assert stats.scale_N is not None
    expected_ND = decoded_ND * stats.scale_N[:, None] + (0.0 if stats.shift_N is None else stats.shift_N[:, None])
    torch.testing.assert_close(reconstruct(sae, code), expected_ND, rtol=1e-4, atol=1e-4)
    decoded = [
        decode_dense(sae, encode_dense(sae, window_TD), each[1], each[0])
        for window_TD in hidden_ND.split(LENGTHS)
        for each in [normalise_input(sae, window_TD)]
    ]
    torch.testing.assert_close(torch.cat(decoded), expected_ND, rtol=1e-4, atol=1e-4)


def test_a_direction_as_short_as_the_epsilon_is_taken_off_in_part(hidden_ND: Tensor, tmp_path: Path) -> None:
    """Whatever factor the input is rescaled by: the epsilon is in the units of the rescaled input."""
    weights = temporal_weights(D, C)
    for name in ("weight", "bias"):
        weights[f"attn_layers.0.c_proj.{name}"] *= 1e-7
    options = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.05}
    sae = load_sae(write_temporal(tmp_path, weights, **options))
    _, predicted_ND, _ = formula(weights, hidden_ND, options)
    code = encode(sae, hidden_ND, LENGTHS)
    assert code.beside_ND is not None
    torch.testing.assert_close(code.beside_ND, predicted_ND, rtol=1e-3, atol=1e-4)
    assert sae.prediction is not None
    without = replace(sae, prediction=replace(sae.prediction, eps=0.0))
    whole_ND = encode(without, hidden_ND, LENGTHS).beside_ND
    assert whole_ND is not None
    assert predicted_ND.norm() < 0.9 * whole_ND.norm()


@pytest.fixture
def sae(tmp_path: Path) -> Sae:
    """A temporal SAE of top-k."""
    return load_sae(write_temporal(tmp_path, temporal_weights(D, C), kval_topk=5))


def test_a_token_is_encoded_by_the_tokens_before_it_and_by_no_other(sae: Sae, hidden_ND: Tensor) -> None:
    window_TD = hidden_ND[:9]
    clean, changed_TD = dense(encode(sae, window_TD, [9])), window_TD.clone()
    changed_TD[4] = changed_TD[4].flip(0)
    changed = dense(encode(sae, changed_TD, [9]))
    torch.testing.assert_close(changed[:4], clean[:4])
    assert (changed[5:] - clean[5:]).abs().amax(1).min() > 1e-4
    swapped = dense(encode(sae, window_TD[[1, 0, *range(2, 9)]], [9]))
    torch.testing.assert_close(swapped[3:], clean[3:], rtol=1e-4, atol=1e-5)


def test_without_layers_of_attention_everything_is_novel(hidden_ND: Tensor, tmp_path: Path) -> None:
    weights = temporal_weights(D, C, num_layers=0)
    sae = load_sae(write_temporal(tmp_path, weights, kval_topk=5))
    code_NC, _, decoded_ND = formula(weights, hidden_ND, {"kval_topk": 5})
    code = encode(sae, hidden_ND, LENGTHS)
    assert code.beside_ND is not None
    assert not code.beside_ND.any()
    torch.testing.assert_close(dense(code), code_NC, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reconstruct(sae, code), decoded_ND, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("together", [1, 8, 1024])
def test_windows_are_encoded_alike_whatever_their_neighbours_are(
    together: int, sae: Sae, hidden_ND: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal, "TOKENS_TOGETHER", together)
    joint = encode(sae, hidden_ND, LENGTHS)
    alone = [encode(sae, window_TD, [len(window_TD)]) for window_TD in hidden_ND.split(LENGTHS)]
    assert joint.beside_ND is not None
    alone_ND = torch.cat([code.beside_ND for code in alone if code.beside_ND is not None])
    torch.testing.assert_close(joint.beside_ND, alone_ND, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense(joint), torch.cat([dense(code) for code in alone]), rtol=1e-5, atol=1e-6)
    one_window = dense(encode(sae, hidden_ND, [len(hidden_ND)]))
    assert not torch.allclose(one_window[7:], dense(joint)[7:], atol=1e-3)


def test_short_windows_share_a_product_up_to_a_bound_and_a_longer_one_has_its_own(
    sae: Sae, hidden_ND: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def linear(codes_RC: Tensor, *weights: Tensor) -> Tensor:
        seen.append(len(codes_RC))
        return torch.nn.functional.linear(codes_RC, *weights)

    monkeypatch.setattr(temporal, "TOKENS_TOGETHER", 8)
    monkeypatch.setattr(temporal, "linear", linear)
    encode(sae, hidden_ND, LENGTHS)
    assert list(dict.fromkeys(seen)) == [1 + 6, 2, 9]


def test_the_code_of_some_rows_keeps_what_was_predicted_of_them(sae: Sae, hidden_ND: Tensor) -> None:
    code, kept_N = encode(sae, hidden_ND, LENGTHS), np.arange(len(hidden_ND)) % 3 > 0
    whole_ND, rows_S = reconstruct(sae, code), torch.from_numpy(kept_N.nonzero()[0])
    torch.testing.assert_close(reconstruct(sae, chosen_rows(code, rows_S)), whole_ND[rows_S])
    emptied_ND = reconstruct(sae, drop_rows(code, kept_N))
    torch.testing.assert_close(emptied_ND[rows_S], whole_ND[rows_S])
    torch.testing.assert_close((whole_ND - of_latents(sae, code))[~kept_N], emptied_ND[~kept_N], rtol=1e-4, atol=1e-4)


def test_without_windows_a_temporal_sae_refuses_and_says_why(sae: Sae, hidden_ND: Tensor) -> None:
    with pytest.raises(SaeError, match=r"is temporal: .* depends on the earlier tokens .*Expected whole windows"):
        encode(sae, hidden_ND)
    with pytest.raises(SaeError, match=r"windows \[1, 6, 2\] have 9 tokens, but there are 18 hidden states"):
        encode(sae, hidden_ND, LENGTHS[:-1])


def test_a_hidden_state_of_zeros_poisons_nothing_after_it(tmp_path: Path, hidden_ND: Tensor) -> None:
    for norm in ("none", "layer_norm", "constant_norm_rescale"):
        options = {"kval_topk": 5, "normalize_activations": norm}
        sae = load_sae(write_temporal(tmp_path, temporal_weights(D, C), **options))
        zeroed_ND = hidden_ND.clone()
        zeroed_ND[[0, 1, 3]] = 0.0
        code = encode(sae, zeroed_ND, LENGTHS)
        assert torch.isfinite(code.rows.values).all()
        assert torch.isfinite(reconstruct(sae, code)).all()
        torch.testing.assert_close(dense(code)[7:], dense(encode(sae, hidden_ND, LENGTHS))[7:])


def test_the_effective_decoder_row_is_that_of_autograd_with_the_prediction_held(
    tmp_path: Path, hidden_ND: Tensor
) -> None:
    options = {"kval_topk": 5, "normalize_activations": "layer_norm"}
    sae = load_sae(write_temporal(tmp_path, temporal_weights(D, C), **options))
    window_TD = hidden_ND[:9]
    code, grad_TD = encode(sae, window_TD, [9]), hidden_ND[9:]
    x_TD, stats = normalise_input(sae, window_TD)
    a_TC = encode_dense(sae, window_TD).requires_grad_()
    (decode_dense(sae, a_TC, stats, x_TD) * grad_TD).sum().backward()
    assert a_TC.grad is not None
    torch.testing.assert_close(project_gradient(sae, code, grad_TD), a_TC.grad[a_TC != 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_one_matrix_in_memory(
    tied: bool, dtype: torch.dtype, hidden_ND: Tensor, tmp_path: Path
) -> None:
    weights = {key: tensor.to(dtype).float() for key, tensor in temporal_weights(D, C, tied=tied).items()}
    folder = write_temporal(tmp_path, weights, kval_topk=5)
    sae, whole = load_sae(folder, dtype=dtype), load_sae(folder)
    assert (sae.w_enc_CD.data_ptr() == sae.w_dec_CD.data_ptr()) is tied
    assert sae.w_dec_CD.dtype is dtype
    assert torch.equal(dense(encode(sae, hidden_ND, LENGTHS)), dense(encode(whole, hidden_ND, LENGTHS)))


def test_hidden_states_in_bfloat16_are_encoded_in_float32(sae: Sae, hidden_ND: Tensor) -> None:
    half_ND = hidden_ND.bfloat16()
    assert torch.equal(dense(encode(sae, half_ND, LENGTHS)), dense(encode(sae, half_ND.float(), LENGTHS)))
    assert kernels_for(sae, torch.device("cpu"), torch.bfloat16) == kernels_for(sae, torch.device("cpu"), torch.float32)
    assert kernels_for(sae, torch.device("cpu"), torch.float32).startswith("temporal torch; ")


def test_a_norm_whose_factor_is_nowhere_applied_is_refused_and_the_two_ways_out_are_named(tmp_path: Path) -> None:
    folder = write_temporal(tmp_path, temporal_weights(D, C), normalize_activations="expected_average_only_in")
    for by_hand in (None, 0.37):
        with pytest.raises(SaeError, match=r"applies no factor .*'none' if .* or 'constant_scalar_rescale' with"):
            load_sae(folder, norm_factor=by_hand)


def test_the_defaults_are_those_of_the_library(tmp_path: Path) -> None:
    weights = temporal_weights(4, 512)
    for name in ("q_target", "k_ctx"):  # 512 / 64
        for part in ("weight", "bias"):
            weights[f"attn_layers.0.{name}.{part}"] = weights[f"attn_layers.0.{name}.{part}"][:8].contiguous()
    folder = write_temporal(tmp_path, weights)
    stated = {
        "architecture": "temporal",
        "d_in": 4,
        "d_sae": 512,
        "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(stated))
    sae = load_sae(folder)
    assert sae.prediction is not None
    (layer,) = sae.prediction.layers
    assert (layer.num_heads, layer.w_query_EC.shape) == (8, (8, 512))
    assert isinstance(sae.rule, Threshold)
    assert torch.equal(sae.prediction.shift_D, weights["b_dec"])
    assert (sae.facts.architecture, sae.facts.hook_name) == ("temporal", "blocks.1.hook_resid_post")
    (folder / "cfg.json").write_text(json.dumps(stated | {"kval_topk": 7}))
    assert load_sae(folder).rule == TopK(k=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "d_sae in .* is 40, expected a multiple of n_heads x bottleneck_factor = 3 x 4"),
        ({"n_heads": "2"}, "n_heads in .* '2', expected int"),
        ({"bottleneck_factor": 0}, "bottleneck_factor in .* 0, expected a positive whole number"),
        ({"n_attn_layers": -1}, "n_attn_layers in .* -1, expected a whole number, 0 or more"),
        ({"n_attn_layers": 0}, "has the unknown attn_layers.0.c_proj.bias"),
        ({"n_attn_layers": 2}, "lacks attn_layers.1.c_proj.bias"),
        ({"sae_diff_type": "jumprelu"}, "sae_diff_type in .* 'jumprelu'; supported: topk, relu"),
        ({"kval_topk": 41}, "kval_topk in .* 41, expected a whole number from 1 to 40"),
        ({"tied_weights": "yes"}, "tied_weights in .* 'yes', expected bool"),
        ({"tied_weights": False}, "lacks W_enc"),
        ({"bottleneck_factor": 2}, r"has shape \(10, 40\), expected \(20, 40\)"),
        (
            {"normalize_activations": "covariance_whitening"},
            "'covariance_whitening'; supported: none, .*constant_scalar",
        ),
        (
            {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0},
            "activation_normalization_factor in .* 0, expected a positive finite number",
        ),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write_temporal(tmp_path, temporal_weights(D, C), **options))


def test_a_factor_by_hand_beside_one_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="norm_factor=2 would have no effect"):
        load_sae(write_temporal(tmp_path, temporal_weights(D, C), **OPTIONS[-1]), norm_factor=2)


@pytest.mark.parametrize("option", ["whitening", "rescale_by_decoder_norm", "b_enc_C", "w_skip_DD", "subtract_b_dec"])
def test_what_a_prediction_cannot_have_is_refused(option: str, sae: Sae) -> None:
    eye_DD = torch.eye(D, dtype=torch.float64)
    values: dict[str, Any] = {
        "whitening": Whitening(mean_D=torch.zeros(D), matrix_DD=eye_DD, inverse_DD=eye_DD),
        "rescale_by_decoder_norm": True,
        "b_enc_C": torch.zeros(C),
        "w_skip_DD": eye_DD,
        "subtract_b_dec": True,
    }
    stored = StoredSae(
        w_enc_CD=sae.w_dec_CD,
        w_dec_CD=sae.w_dec_CD,
        b_enc_C=None,
        b_dec_D=sae.b_dec_D,
        rule=sae.rule,
        subtract_b_dec=False,
        prediction=sae.prediction,
    )
    with pytest.raises(SaeError, match=r"the temporal SAE .* expected none"):
        fold(replace(stored, **{option: values[option]}), facts=sae.facts, device="cpu", dtype=torch.float32)
