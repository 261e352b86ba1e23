"""Llama Scope R1-Distill folders: the comparison in the trained units, the facts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae

FOLDER = "models--fnlp--Llama-Scope-R1-Distill/snapshots/abc/400M-Slimpajama-400M-OpenR1-Math-220k/L15R"
HOOK = "blocks.15.hook_resid_post"
NORM = f"dataset_average_activation_norm.{HOOK}"
CONFIG = {
    "sae_type": "sae",
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "d_model": 12,
    "expansion_factor": 4,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
    "top_k": 50,
}


def weights_of(numbers: Any, d: int = 12, c: int = 48) -> dict[str, Any]:
    return {
        "encoder.weight": numbers(c, d),
        "encoder.bias": numbers(c),
        "decoder.weight": numbers(d, c),
        "decoder.bias": numbers(d),
        "log_jumprelu_threshold": numbers(c),
        NORM: torch.tensor(2.75),
    }


def write(folder: Path, weights: dict[str, Tensor | None], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("expansion", [4, 1])
def test_a_folder_computes_what_its_own_software_computes(
    with_norm: bool, expansion: int, tmp_path: Path, numbers: Any, agree: Any
) -> None:
    weights = weights_of(numbers, 12, 12 * expansion)
    w = {key: tensor.double() for key, tensor in weights.items()}
    tokens = numbers(9, 12)
    factor = 12**0.5 / 2.75
    h = (tokens.double() * factor) @ w["encoder.weight"].T + w["encoder.bias"]
    compared = h * w["decoder.weight"].norm(dim=0) if with_norm else h
    code = h * (compared > w["log_jumprelu_threshold"].exp())
    decoded = (code @ w["decoder.weight"].T + w["decoder.bias"]) / factor
    folder = write(tmp_path / FOLDER, weights, expansion_factor=expansion, sparsity_include_decoder_norm=with_norm)
    for path in (folder, folder / "config.json", folder / "sae_weights.safetensors"):
        agree(load_sae(path), tokens, code, decoded, w["decoder.weight"].T / factor)


def test_facts_are_read_from_the_configuration_and_the_path(tmp_path: Path, numbers: Any) -> None:
    facts = load_sae(write(tmp_path / FOLDER, weights_of(numbers))).facts
    assert (facts.format, facts.architecture, facts.hook_name, facts.reads) == (
        "llama_scope_r1",
        "jumprelu",
        HOOK,
        None,
    )
    assert facts.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert (facts.prepend_bos, facts.context_size, facts.d_in, facts.num_latents) == (True, 1024, 12, 48)


def test_a_latent_without_a_decoder_column_never_fires(tmp_path: Path, numbers: Any) -> None:
    weights = weights_of(numbers)
    weights["decoder.weight"][:, 7] = 0
    sae = load_sae(write(tmp_path / FOLDER, weights))
    assert torch.isposinf(sae.rule.threshold_C[7])  # type: ignore[union-attr]


def test_saelens_configuration_beside_the_weights_decides_for_saelens(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path / FOLDER, weights_of(numbers))
    (folder / "cfg.json").write_text("{}")
    with pytest.raises(SaeError, match=r"cfg\.json"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "of one site"),
        ({"act_fn": "topk"}, "'topk'; supported: 'jumprelu'"),
        ({"norm_activation": "token-wise"}, "'token-wise'; supported: 'dataset-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder in .* True"),
        ({"sparsity_include_decoder_norm": "yes"}, "expected bool"),
        ({"expansion_factor": 5}, r"\(48, 12\), expected \(60, 12\)"),
    ],
)
def test_another_recipe_is_refused(config: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, weights_of(numbers), **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, "stores 0 tensors named dataset_average_activation_norm"),
        ({NORM: torch.tensor(0.0)}, "expected one positive number"),
        ({"log_jumprelu_threshold": None}, "lacks log_jumprelu_threshold"),
        ({"decoder.weight": torch.zeros(48, 12)}, "It looks transposed"),
    ],
)
def test_wrong_weights_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, weights_of(numbers) | changes))
