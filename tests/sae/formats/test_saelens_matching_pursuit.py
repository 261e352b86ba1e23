"""Matching pursuit SAEs of SAELens: its loop, its folding of a factor, its b_dec, and what it cannot be.

Shapes: N tokens, D width of the site, C latents.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gradsae_fast.errors import SaeError, ScoreError
from gradsae_fast.sae.canonical import MatchingPursuit, normalise_input, without_latents
from gradsae_fast.sae.fold import StoredSae, Whitening, fold
from gradsae_fast.sae.formats import saelens
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.sparse_code import encode, kernels_for, project_gradient, reconstruct

FACTOR = 0.37
STOPS: list[dict[str, Any]] = [
    {},
    {"max_iterations": 3},
    {"max_iterations": 7, "stop_on_duplicate_support": False},
    {"residual_threshold": 0.5},
    {"residual_threshold": 1.0, "stop_on_duplicate_support": False, "max_iterations": 10},
    {"residual_threshold": 0, "max_iterations": 5},
]


def published_code(
    x_ND: Tensor,
    w_CD: Tensor,
    *,
    residual_threshold: float = 1e-2,
    max_iterations: int | None = None,
    stop_on_duplicate_support: bool = True,
) -> Tensor:
    """The loop of SAELens over a centred input, in float64: all tokens step, and those that are done add nothing."""
    residual_ND, w_CD = x_ND.double(), w_CD.double()
    a_NC = torch.zeros(len(x_ND), len(w_CD), dtype=torch.float64)
    support_NC, done_N = a_NC != 0, torch.zeros(len(x_ND), dtype=torch.bool)
    for _ in range(x_ND.shape[1] if max_iterations is None else max_iterations):
        latent_N = (residual_ND @ w_CD.T).relu().max(dim=1).indices
        value_N = torch.where(done_N, 0.0, (residual_ND * w_CD[latent_N]).sum(dim=1).relu())
        a_NC.scatter_add_(1, latent_N[:, None], value_N[:, None])
        residual_ND = residual_ND - value_N[:, None] * w_CD[latent_N]
        if stop_on_duplicate_support:
            done_N |= ((a_NC != 0) == support_NC).all(dim=1)
            support_NC = a_NC != 0
        if residual_threshold > 0:
            done_N |= residual_ND.norm(dim=1) < residual_threshold
    return a_NC


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_a_loaded_sae_computes_the_published_loop(
    stops: dict[str, Any], subtract: bool, norm: str, write_saelens: Any, hidden_ND: Tensor
) -> None:
    options = {"apply_b_dec_to_input": subtract, "normalize_activations": norm}
    saved = write_saelens("matching_pursuit", **options, **stops)
    sae = load_sae(saved.folder)
    x_ND, stats = normalise_input(sae, hidden_ND)
    b_dec_D = saved.weights["b_dec"] if subtract else torch.zeros(12)
    code_NC = published_code(x_ND - b_dec_D, saved.weights["W_dec"], **stops).float()
    assert (code_NC != 0).sum() > len(hidden_ND)

    a_NC, code = encode_dense(sae, hidden_ND), encode(sae, hidden_ND)
    assert torch.equal(a_NC != 0, code_NC != 0)
    assert torch.equal(code.rows.indices.long(), code_NC.nonzero()[:, 1])
    torch.testing.assert_close(a_NC, code_NC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(code.rows.values, code_NC[code_NC != 0], rtol=1e-4, atol=1e-4)

    scale = 1.0 if stats.scale_N is None else stats.scale_N[:, None]
    shift = 0.0 if stats.shift_N is None else stats.shift_N[:, None]
    decoded_ND = (code_NC @ saved.weights["W_dec"] + b_dec_D) * scale + shift
    torch.testing.assert_close(decode_dense(sae, a_NC, stats), decoded_ND, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reconstruct(sae, code), decoded_ND, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(without_latents(sae, 0 * x_ND, stats), (b_dec_D + 0 * x_ND) * scale + shift)


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_a_factor_divides_latents_and_threshold_as_the_library_folds_it(
    stops: dict[str, Any], write_saelens: Any, hidden_ND: Tensor
) -> None:
    saved = write_saelens("matching_pursuit", normalize_activations="expected_average_only_in", **stops)
    sae = load_sae(saved.folder, norm_factor=FACTOR)
    w_dec_CD, b_dec_D = saved.weights["W_dec"], saved.weights["b_dec"]
    code_NC = (published_code(FACTOR * hidden_ND - b_dec_D, w_dec_CD, **stops) / FACTOR).float()
    a_NC = encode_dense(sae, hidden_ND)
    assert torch.equal(a_NC != 0, code_NC != 0)
    torch.testing.assert_close(a_NC, code_NC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encode(sae, hidden_ND).rows.values, code_NC[code_NC != 0], rtol=1e-4, atol=1e-4)
    assert torch.equal(sae.w_dec_CD, w_dec_CD)
    found_ND = decode_dense(sae, a_NC, normalise_input(sae, hidden_ND)[1])
    torch.testing.assert_close(found_ND, code_NC @ w_dec_CD + b_dec_D / FACTOR, rtol=1e-4, atol=1e-4)


def test_the_effective_decoder_row_is_that_of_a_fixed_code(write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("matching_pursuit", normalize_activations="layer_norm").folder)
    stats, code = normalise_input(sae, hidden_ND)[1], encode(sae, hidden_ND)
    a_NC = encode_dense(sae, hidden_ND).requires_grad_()
    grad_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(3))
    (decode_dense(sae, a_NC, stats) * grad_ND).sum().backward()
    assert a_NC.grad is not None
    torch.testing.assert_close(project_gradient(sae, code, grad_ND), a_NC.grad[a_NC != 0], rtol=1e-4, atol=1e-4)


def test_the_oracle_has_the_gradient_of_the_steps_that_were_taken(write_saelens: Any, hidden_ND: Tensor) -> None:
    """Later latents answer to what earlier ones take off, so that it is not a row of the encoder."""
    saved = write_saelens("matching_pursuit", max_iterations=2)
    sae, leaf_ND = load_sae(saved.folder), hidden_ND.clone().requires_grad_()
    a_NC = encode_dense(sae, leaf_ND)
    a_NC.sum().backward()
    for x_D, grad_D in zip(hidden_ND - saved.weights["b_dec"], leaf_ND.grad, strict=True):  # type: ignore[arg-type]
        first_D = sae.w_dec_CD[(sae.w_dec_CD @ x_D).argmax()]
        rest_D = x_D - (first_D @ x_D) * first_D
        second_D = sae.w_dec_CD[(sae.w_dec_CD @ rest_D).argmax()]
        expected_D = first_D + second_D - (second_D @ first_D) * first_D
        torch.testing.assert_close(grad_D, expected_D, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_matrix_is_kept_for_both_directions(dtype: torch.dtype, write_saelens: Any, hidden_ND: Tensor) -> None:
    sae = load_sae(write_saelens("matching_pursuit").folder, dtype=dtype)
    assert sae.w_enc_CD is sae.w_dec_CD
    assert sae.w_dec_CD.dtype is dtype
    whole = replace(sae, w_enc_CD=sae.w_enc_CD.float(), w_dec_CD=sae.w_dec_CD.float())
    assert torch.equal(encode_dense(sae, hidden_ND), encode_dense(whole, hidden_ND))
    assert torch.equal(encode(sae, hidden_ND).rows.values, encode(whole, hidden_ND).rows.values)
    first_NC = hidden_ND @ whole.w_enc_CD.T + sae.bias_C
    torch.testing.assert_close(first_NC, (hidden_ND - sae.b_dec_D) @ whole.w_dec_CD.T, rtol=1e-4, atol=1e-4)


def test_what_was_saved_is_in_the_layout_of_the_library(tmp_path: Path, numbers: Any) -> None:
    weights = {"W_dec": numbers(40, 12), "b_dec": numbers(12)}
    folder = saelens.save(tmp_path, architecture="matching_pursuit", weights=weights, config={"max_iterations": 4})
    config = json.loads((folder / saelens.CONFIG).read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("matching_pursuit", 12, 40)
    assert set(load_file(folder / saelens.WEIGHTS)) == {"W_dec", "b_dec"}
    sae = load_sae(folder)
    assert (sae.facts.architecture, sae.d_in, sae.d_out, sae.num_latents) == ("matching_pursuit", 12, 12, 40)
    assert sae.rule == MatchingPursuit(max_iterations=4, residual_threshold=1e-2, stop_on_repeat=True)
    extra = weights | {"W_enc": numbers(12, 40)}
    with pytest.raises(SaeError, match="has the unknown W_enc"):
        saelens.save(tmp_path / "b", architecture="matching_pursuit", weights=extra, config={})


def test_a_record_says_that_the_encoder_is_plain_torch(write_saelens: Any) -> None:
    words = kernels_for(load_sae(write_saelens("matching_pursuit").folder), torch.device("cpu"), torch.float32)
    assert words.startswith("matching pursuit tiled torch; tiled")


def test_a_pursuit_that_grows_out_of_fp32_is_refused_by_name(write_saelens: Any, hidden_ND: Tensor) -> None:
    w_dec = 100 * write_saelens("matching_pursuit").weights["W_dec"]
    options = {"max_iterations": 60, "stop_on_duplicate_support": False}
    saved = write_saelens("matching_pursuit", weights={"W_dec": w_dec}, **options)
    sae = load_sae(saved.folder)
    with pytest.raises(ScoreError, match=r"cannot encode these hidden states: pre-activations of row \d"):
        encode(sae, hidden_ND)


@pytest.mark.parametrize("option", ["whitening", "rescale_by_decoder_norm", "b_enc_C", "w_skip_DD", "subtract_b_dec"])
def test_what_would_change_the_latents_that_are_taken_is_not_folded(
    option: str, write_saelens: Any, numbers: Any
) -> None:
    eye_DD = torch.eye(12, dtype=torch.float64)
    values: dict[str, Any] = {
        "whitening": Whitening(mean_D=eye_DD[0], matrix_DD=eye_DD, inverse_DD=eye_DD),
        "rescale_by_decoder_norm": True,
        "b_enc_C": numbers(40),
        "w_skip_DD": eye_DD,
        "subtract_b_dec": False,
    }
    weights = write_saelens("matching_pursuit").weights
    stored = StoredSae(
        w_enc_CD=weights["W_dec"],
        w_dec_CD=weights["W_dec"],
        b_enc_C=None,
        b_dec_D=weights["b_dec"],
        rule=MatchingPursuit(max_iterations=3, residual_threshold=0.0, stop_on_repeat=True),
        subtract_b_dec=True,
    )
    facts = load_sae(write_saelens("matching_pursuit").folder).facts
    assert fold(stored, facts=facts, device="cpu", dtype=torch.float32).num_latents == 40
    with pytest.raises(SaeError, match="expected none: its one matrix"):
        fold(replace(stored, **{option: values[option]}), facts=facts, device="cpu", dtype=torch.float32)
