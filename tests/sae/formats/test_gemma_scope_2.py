"""Gemma Scope 2 folders: the published formula, the facts in configuration and path, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae

FOLDER = "models--google--gemma-scope-2-270m-it/snapshots/abc/resid_post/layer_9_width_16k_l0_medium"
CONFIG = {
    "architecture": "jump_relu",
    "model_name": "gemma-v3-270m-it",
    "hf_hook_point_in": "model.layers.9.output",
    "hf_hook_point_out": "model.layers.9.output",
    "affine_connection": False,
}


def weights_of(numbers: Any, d: int = 12, c: int = 40) -> dict[str, Any]:
    return {
        "w_enc": numbers(d, c),
        "w_dec": numbers(c, d),
        "b_enc": numbers(c),
        "b_dec": numbers(d),
        "threshold": numbers(c).abs(),
    }


def write(folder: Path, weights: dict[str, Tensor | None], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor for key, tensor in weights.items() if tensor is not None}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config", [CONFIG, None])
def test_a_folder_computes_the_published_formula(
    config: dict[str, Any] | None,
    tmp_path: Path,
    numbers: Any,
    widths: tuple[int, int],
    tokens: Tensor,
    agree: Any,
) -> None:
    w = weights_of(numbers, *widths)
    folder = write(tmp_path / FOLDER, w, config)
    h = tokens @ w["w_enc"] + w["b_enc"]
    code = torch.relu(h) * (h > w["threshold"])
    for path in (folder, folder / "params.safetensors"):
        agree(load_sae(path), tokens, code, code @ w["w_dec"] + w["b_dec"], w["w_dec"])


READS, WRITES = "model.layers.9.pre_feedforward_layernorm.output", "model.layers.9.post_feedforward_layernorm.output"
TRANSCODER = CONFIG | {"hf_hook_point_in": READS, "hf_hook_point_out": WRITES}
TRANSCODER_FOLDER = "gemma-scope-2-270m-it/transcoder_all/layer_9_width_16k_l0_small"


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("configured", [True, False])
def test_a_transcoder_reads_before_the_mlp_and_writes_behind_it(
    affine: bool, configured: bool, tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    w = weights_of(numbers, *widths)
    if affine:
        w["affine_skip_connection"] = numbers(widths[0], widths[0])
    config = TRANSCODER | {"affine_connection": affine} if configured else None
    folder = tmp_path / "any" if configured else tmp_path / (TRANSCODER_FOLDER + "_affine" * affine)
    sae = load_sae(write(folder, w, config))
    h = tokens @ w["w_enc"] + w["b_enc"]
    code = torch.relu(h) * (h > w["threshold"])
    skipped = tokens @ w["affine_skip_connection"] if affine else 0
    agree(sae, tokens, code, code @ w["w_dec"] + w["b_dec"] + skipped, w["w_dec"])
    assert (sae.facts.reads, sae.facts.hook_name) == ("layers.9.pre_feedforward_layernorm", "blocks.9.hook_mlp_out")


@pytest.mark.parametrize(
    ("folder", "config", "hook_name", "model_name"),
    [
        (FOLDER, CONFIG, "blocks.9.hook_resid_post", "google/gemma-3-270m-it"),
        (
            "gemma-scope-2-270m-pt/mlp_out_all/layer_3_width_16k_l0_small",
            None,
            "blocks.3.hook_mlp_out",
            "google/gemma-3-270m",
        ),
        (
            "gemma-scope-2-4b-pt/any",
            CONFIG
            | {"hf_hook_point_in": "model.layers.2.post_feedforward_layernorm.output", "hf_hook_point_out": None},
            "blocks.2.hook_mlp_out",
            "google/gemma-3-4b-pt",
        ),
        (
            "gemma-scope-2-1b-it/attn_out_all/layer_4_width_16k_l0_small",
            None,
            "blocks.4.attn.hook_z",
            "google/gemma-3-1b-it",
        ),
        (
            "any",
            CONFIG | {"hf_hook_point_in": "model.layers.2.self_attn.o_proj.input", "hf_hook_point_out": None},
            "blocks.2.attn.hook_z",
            None,
        ),
        ("mine", None, None, None),
    ],
)
def test_facts_are_read_from_the_configuration_and_the_path(
    folder: str,
    config: dict[str, Any] | None,
    hook_name: str | None,
    model_name: str | None,
    tmp_path: Path,
    numbers: Any,
) -> None:
    facts = load_sae(write(tmp_path / folder, weights_of(numbers), config)).facts
    assert (facts.hook_name, facts.model_name, facts.format) == (hook_name, model_name, "gemma_scope_2")
    assert (facts.architecture, facts.prepend_bos, facts.d_in, facts.num_latents) == ("jumprelu", True, 12, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, "'topk'; supported: jump_relu"),
        ({"hf_hook_point_out": WRITES}, "read and written, or from pre_feedforward_layernorm.output"),
        ({"affine_connection": True}, "affine_connection True; supported"),
        ({"affine_connection": "yes"}, "expected bool"),
        ({"hf_hook_point_in": READS, "hf_hook_point_out": WRITES.replace("9", "8")}, "of one layer"),
        ({"hf_hook_point_in": READS, "hf_hook_point_out": None}, "hf_hook_point_out None"),
        ({"hf_hook_point_in": None, "hf_hook_point_out": None}, "hf_hook_point_in None"),
    ],
)
def test_other_modules_and_architectures_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, weights_of(numbers), CONFIG | changes))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("embedding", "kind 'embedding'; supported: resid_post, mlp_out, attn_out, transcoder"),
        ("crosscoder", "kind 'crosscoder'.*reads several layers at once"),
    ],
)
def test_the_kind_in_the_path_is_refused_too(kind: str, message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / kind / "layer_9_width_16k_l0_big", weights_of(numbers)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "lacks threshold"),
        ({"affine_skip_connection": torch.zeros(12, 12)}, "has the unknown affine_skip_connection"),
        ({"w_dec": torch.zeros(12, 40)}, "It looks transposed"),
        ({"w_enc": torch.zeros(12)}, "expected two dimensions"),
        ({"threshold": torch.full((40,), -1.0)}, "negative for 40 of 40"),
    ],
)
def test_wrong_weights_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, weights_of(numbers) | changes, CONFIG))


def test_an_affine_transcoder_without_its_skip_is_refused(tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=r"lacks affine_skip_connection.*Gemma Scope 2 \(affine\)"):
        load_sae(write(tmp_path / f"{TRANSCODER_FOLDER}_affine", weights_of(numbers)))
