"""Llama Scope folders: OpenMOSS' own order of loading, step by step, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import encode_dense

FOLDER = "Llama3_1-8B-Base-L15R-8x"
# The published hyperparameters that decide over the numbers; sizes and norm are the test's own.
CONFIG = {
    "dtype": "torch.bfloat16",
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "d_model": 12,
    "d_sae": 40,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 1.5,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 5.5, "out": 5.5},
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "top_k": 50,
}


def weights_of(numbers: Any, d: int = 12, c: int = 40) -> dict[str, Any]:
    return {
        "encoder.weight": numbers(c, d),
        "encoder.bias": numbers(c),
        "decoder.weight": numbers(d, c),
        "decoder.bias": numbers(d),
    }


def write(folder: Path, weights: dict[str, Tensor | None], **config: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(CONFIG | config))
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "checkpoints" / "final.safetensors")
    return folder


def test_a_folder_computes_what_its_own_software_computes_after_loading(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    d, c = widths
    weights = weights_of(numbers, d, c)
    w = {key: tensor.double() for key, tensor in weights.items()}
    factor = d**0.5 / 5.5
    # Taken out of the biases; encoder and decoder stay, for the factors of input and output are the same.
    b_enc, b_dec = w["encoder.bias"] / factor, w["decoder.bias"] / factor
    # Then decoder rows of norm 1, and only then the threshold.
    norm = w["decoder.weight"].norm(dim=0)
    w_enc, rows = w["encoder.weight"] * norm[:, None], (w["decoder.weight"] / norm).T
    u = tokens.double() @ w_enc.T + b_enc * norm
    code = u * (u > 1.5)
    folder = write(tmp_path / FOLDER, weights, d_model=d, d_sae=c)
    for path in (folder, folder / "hyperparams.json", folder / "checkpoints" / "final.safetensors"):
        agree(load_sae(path), tokens, code, code @ rows + b_dec, rows)


def test_a_transcoder_computes_what_its_own_software_computes_after_loading(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    d, c = widths
    weights = weights_of(numbers, d, c)
    w = {key: tensor.double() for key, tensor in weights.items()}
    factor_in, factor_out = d**0.5 / 5.5, d**0.5 / 1.25
    # Out of the biases, each by the factor of its own site, and the decoder by their ratio; then rows of norm 1.
    b_enc, b_dec = w["encoder.bias"] / factor_in, w["decoder.bias"] / factor_out
    w_dec = w["decoder.weight"] * factor_in / factor_out
    norm = w_dec.norm(dim=0)
    u = tokens.double() @ (w["encoder.weight"] * norm[:, None]).T + b_enc * norm
    code, rows = u * (u > 1.5), (w_dec / norm).T
    hooks = {"hook_point_in": "blocks.15.hook_resid_mid", "hook_point_out": "blocks.15.hook_mlp_out"}
    norms = {"in": 5.5, "out": 1.25}
    sae = load_sae(
        write(tmp_path / FOLDER, weights, d_model=d, d_sae=c, dataset_average_activation_norm=norms, **hooks)
    )
    agree(sae, tokens, code, code @ rows + b_dec, rows)
    assert (sae.facts.reads, sae.facts.hook_name) == ("blocks.15.hook_resid_mid", "blocks.15.hook_mlp_out")


def test_active_latents_are_those_of_the_trained_units_and_a_scaled_threshold(
    tmp_path: Path, numbers: Any, tokens: Tensor, widths: tuple[int, int]
) -> None:
    """The other reading of the same files: latents of s z, threshold times s, for decoder rows of norm 1."""
    d, c = widths
    weights = weights_of(numbers, d, c)
    weights["decoder.weight"] = torch.nn.functional.normalize(weights["decoder.weight"], dim=0)
    factor = d**0.5 / 5.5
    h = tokens.double() * factor @ weights["encoder.weight"].double().T + weights["encoder.bias"]
    a_NC = encode_dense(load_sae(write(tmp_path / FOLDER, weights, d_model=d, d_sae=c)), tokens)
    assert torch.equal(a_NC > 0, h > 1.5 * factor)


def test_facts_are_read_from_the_hyperparameters(tmp_path: Path, numbers: Any) -> None:
    facts = load_sae(write(tmp_path / FOLDER, weights_of(numbers))).facts
    assert (facts.format, facts.architecture, facts.hook_name) == (
        "llama_scope",
        "jumprelu",
        "blocks.15.hook_resid_post",
    )
    assert (facts.model_name, facts.prepend_bos, facts.context_size) == ("meta-llama/Llama-3.1-8B", True, 1024)
    assert (facts.published_l0, facts.d_in, facts.num_latents) == (50.0, 12, 40)
    assert facts.reads is None
    assert load_sae(write(tmp_path / "mine", weights_of(numbers))).facts.model_name is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hook_point_out": None}, "hook_point_out None; expected both"),
        ({"norm_activation": "inference"}, "'inference', expected 'dataset-wise'; the unit of jump_relu_threshold"),
        ({"act_fn": "topk"}, "'topk', expected 'jumprelu'"),
        ({"sparsity_include_decoder_norm": False}, "not guessed"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "not guessed"),
        ({"use_glu_encoder": True}, "not guessed"),
        ({"use_glu_encoder": None}, "not guessed"),
        ({"dataset_average_activation_norm": None}, "has no 'dataset_average_activation_norm'"),
        ({"dataset_average_activation_norm": {"in": 5.5, "out": 7.0}}, "expected one number"),
        ({"dataset_average_activation_norm": {"in": 0.0, "out": 0.0}}, "expected a positive finite number"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold in .* None, expected a positive"),
        ({"d_sae": 41}, r"\(40, 12\), expected \(41, 12\)"),
    ],
)
def test_another_recipe_is_refused_and_not_guessed(
    config: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, weights_of(numbers), **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.bias": None}, "lacks decoder.bias"),
        ({"encoder_glu.weight": torch.zeros(40, 12)}, "has the unknown encoder_glu.weight"),
        ({"decoder.weight": torch.zeros(40, 12)}, "It looks transposed"),
    ],
)
def test_wrong_weights_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, weights_of(numbers) | changes))
