"""SAELens transcoders: the published formula at two widths, the sites in the metadata, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.formats import saelens
from gradsae_fast.sae.load import load_sae

ARCHITECTURES = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
METADATA = {"hook_name": "blocks.3.ln2.hook_normalized", "hook_name_out": "blocks.3.hook_mlp_out"}
C = 40


def weights_of(architecture: str, numbers: Any, d_in: int, d_out: int) -> dict[str, Any]:
    weights = {"W_enc": numbers(d_in, C), "W_dec": numbers(C, d_out), "b_enc": numbers(C), "b_dec": numbers(d_out)}
    if "jumprelu" in architecture:
        weights["threshold"] = numbers(C).abs()
    if "skip" in architecture:
        weights["W_skip"] = numbers(d_out, d_in)
    return weights


def write(folder: Path, architecture: str, weights: dict[str, Tensor], **config: Any) -> Path:
    return saelens.save(folder, architecture=architecture, weights=weights, config={"metadata": METADATA} | config)


@pytest.mark.parametrize("d_out", [10, 12, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_transcoder_computes_the_published_formula(
    architecture: str, d_out: int, tmp_path: Path, numbers: Any, agree: Any
) -> None:
    w = weights_of(architecture, numbers, 12, d_out)
    tokens = numbers(9, 12) * 2 + 0.5
    h = tokens @ w["W_enc"] + w["b_enc"]
    code = torch.relu(h) * (h > w.get("threshold", 0))
    decoded = code @ w["W_dec"] + w["b_dec"] + (tokens @ w["W_skip"].T if "W_skip" in w else 0)
    sae = load_sae(write(tmp_path, architecture, w))
    agree(sae, tokens, code, decoded, w["W_dec"])
    assert (sae.d_in, sae.d_out, sae.facts.architecture) == (12, d_out, architecture)
    assert (sae.w_skip_DD is not None) == ("skip" in architecture)


def test_what_was_saved_is_in_the_layout_of_the_library(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path, "skip_transcoder", weights_of("skip_transcoder", numbers, 12, 10))
    config = json.loads((folder / saelens.CONFIG).read_text())
    assert (config["d_in"], config["d_out"], config["d_sae"], config["apply_b_dec_to_input"]) == (12, 10, C, False)
    assert load_file(folder / saelens.WEIGHTS)["W_skip"].shape == (10, 12)


@pytest.mark.parametrize(
    ("metadata", "reads", "hook_name", "site"),
    [
        ({}, "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out", None),
        (
            {"hf_hook_name": "model.layers.3.mlp.input", "hf_hook_name_out": "model.layers.3.mlp"},
            "model.layers.3.mlp.input",
            "blocks.3.hook_mlp_out",
            "model.layers.3.mlp",
        ),
        ({"hook_name_out": None}, "blocks.3.ln2.hook_normalized", None, None),
    ],
)
def test_the_metadata_says_what_is_read_and_what_is_written(
    metadata: dict[str, Any], reads: str, hook_name: str | None, site: str | None, tmp_path: Path, numbers: Any
) -> None:
    weights = weights_of("transcoder", numbers, 12, 12)
    facts = load_sae(write(tmp_path, "transcoder", weights, metadata=METADATA | metadata)).facts
    assert (facts.reads, facts.hook_name, facts.site) == (reads, hook_name, site)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metadata": {}}, "names no site that the transcoder reads; expected hook_name"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input .* True, expected false"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm'; supported for a transcoder: none"),
        ({"d_out": None}, "d_out in .* None"),
        ({"d_out": 11}, r"W_dec .*\(40, 10\), expected \(40, 11\)"),
    ],
)
def test_a_transcoder_that_says_otherwise_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path, "transcoder", weights_of("transcoder", numbers, 12, 10), **config))


def test_a_turned_skip_is_refused(tmp_path: Path, numbers: Any) -> None:
    weights = weights_of("skip_transcoder", numbers, 12, 10)
    with pytest.raises(SaeError, match=r"W_skip .*\(12, 10\), expected \(10, 12\)\. It looks transposed"):
        write(tmp_path, "skip_transcoder", weights | {"W_skip": weights["W_skip"].T.contiguous()})
