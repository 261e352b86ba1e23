"""circuit-tracer's transcoders of one layer: the published formula, the hooks, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae

CONFIG = """
model_kind: transcoder_set
model_name: "Qwen/Qwen3-0.6B"
feature_input_hook: mlp.hook_in
feature_output_hook: hook_mlp_out
transcoders:
  - hf://somebody/somewhere/layer_0.safetensors
"""
THRESHOLD = "activation_function.threshold"


def weights_of(numbers: Any, d: int = 12, c: int = 40) -> dict[str, Any]:
    return {"W_enc": numbers(c, d), "W_dec": numbers(c, d), "b_enc": numbers(c), "b_dec": numbers(d)}


def write(folder: Path, weights: dict[str, Tensor | None], config: str | None = CONFIG) -> Path:
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "layer_5.safetensors")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder / "layer_5.safetensors"


@pytest.mark.parametrize("threshold", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_a_file_computes_the_published_formula(
    threshold: bool, skip: bool, tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    d, c = widths
    w = weights_of(numbers, d, c)
    w |= {THRESHOLD: numbers(c).abs()} if threshold else {}
    w |= {"W_skip": numbers(d, d)} if skip else {}
    h = tokens @ w["W_enc"].T + w["b_enc"]
    code = torch.relu(h) * (h > w.get(THRESHOLD, 0))
    decoded = code @ w["W_dec"] + w["b_dec"] + (tokens @ w["W_skip"].T if skip else 0)
    sae = load_sae(write(tmp_path, w))
    agree(sae, tokens, code, decoded, w["W_dec"])
    assert sae.facts.architecture == ("jumprelu" if threshold else "relu") + "_skip" * skip + "_transcoder"


def test_hooks_are_those_of_the_file_in_the_layer_of_its_name(tmp_path: Path, numbers: Any) -> None:
    facts = load_sae(write(tmp_path, weights_of(numbers))).facts
    assert (facts.reads, facts.hook_name) == ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out")
    assert (facts.format, facts.model_name, facts.site) == ("circuit_tracer", "Qwen/Qwen3-0.6B", None)


def test_a_folder_of_layers_asks_for_one(tmp_path: Path, numbers: Any) -> None:
    write(tmp_path, weights_of(numbers))
    with pytest.raises(SaeError, match=r"an SAE lies in layer_5\.safetensors: give that file"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"config\.yaml is missing"),
        ("a: [", "not readable as YAML"),
        ("- a\n- b", "holds a YAML list, expected a mapping"),
        ("feature_input_hook: mlp.hook_in", "has no feature_output_hook, it has feature_input_hook"),
        ("model_kind: cross_layer_transcoder", "'cross_layer_transcoder'; expected transcoder_set"),
        (CONFIG + "activation: topk\nk: 128", "'topk'; supported: relu, jump_relu"),
        (CONFIG + "activation: jump_relu", "but the weights have no activation_function.threshold"),
        (CONFIG + "model_name: 3", "model_name in .* expected str"),
        ("!!python/object/apply:os.getcwd []", "not readable as YAML"),
    ],
)
def test_a_wrong_configuration_is_refused(config: str | None, message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path, weights_of(numbers), config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": None}, "lacks W_dec"),
        ({"k": torch.tensor(7)}, "has the unknown k"),
        ({"W_enc": torch.zeros(12, 40)}, "It looks transposed"),
        ({THRESHOLD: torch.full((40,), -1.0)}, "negative for 40 of 40"),
        ({"W_skip": torch.zeros(12, 11)}, r"W_skip .* expected \(12, 12\)"),
    ],
)
def test_wrong_weights_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path, weights_of(numbers) | changes))
