"""sparsify folders: the published formula, the facts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import GroupMax, TopK
from gradsae_fast.sae.load import load_sae

# As SparseCoder.save_to_disk writes it.
CONFIG = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": 40,
    "k": 5,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": 12,
}


def write(folder: Path, weights: dict[str, Tensor | None], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(CONFIG | config))
    kept = {key: tensor.contiguous() for key, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "sae.safetensors")
    return folder


def weights_of(numbers: Any, d: int, c: int) -> dict[str, Any]:
    return {
        "encoder.weight": numbers(c, d),
        "encoder.bias": numbers(c),
        "W_dec": numbers(c, d),
        "b_dec": numbers(d),
    }


@pytest.mark.parametrize("k", [5, 16])
def test_a_folder_computes_the_published_formula(
    k: int, tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any, top_k: Any
) -> None:
    d, c = widths
    w = weights_of(numbers, d, c)
    w["encoder.bias"] = w["encoder.bias"] - 8  # so that some tokens have fewer positive latents than k
    folder = write(tmp_path / "layers.3", w, num_latents=c, d_in=d, k=k)
    code_NC = top_k(torch.relu((tokens - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]), k)
    assert k == 5 or (code_NC != 0).sum(1).min() < k
    for path in (folder, folder / "sae.safetensors", folder / "cfg.json"):
        agree(load_sae(path), tokens, code_NC, code_NC @ w["W_dec"] + w["b_dec"], w["W_dec"])


@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_a_transcoder_subtracts_no_bias_and_a_skip_takes_the_input_turned(
    skip: bool,
    transcode: bool,
    tmp_path: Path,
    numbers: Any,
    widths: tuple[int, int],
    tokens: Tensor,
    agree: Any,
    top_k: Any,
) -> None:
    d, c = widths
    w = weights_of(numbers, d, c) | ({"W_skip": numbers(d, d)} if skip else {})
    config = {"transcode": transcode, "skip_connection": skip, "num_latents": c, "d_in": d}
    read = tokens if transcode else tokens - w["b_dec"]
    code_NC = top_k(torch.relu(read @ w["encoder.weight"].T + w["encoder.bias"]), 5)
    decoded_ND = code_NC @ w["W_dec"] + w["b_dec"] + (tokens @ w["W_skip"].T if skip else 0)
    sae = load_sae(write(tmp_path / "layers.3.mlp", w, **config))
    agree(sae, tokens, code_NC, decoded_ND, w["W_dec"])
    assert sae.facts.reads == ("layers.3.mlp.input" if transcode else None)


def test_group_max_keeps_the_largest_latent_of_each_group(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    d, c = widths
    w = weights_of(numbers, d, c)
    sae = load_sae(write(tmp_path / "layers.3", w, num_latents=c, d_in=d, k=8, activation="groupmax"))
    u_NC = torch.relu((tokens - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    values_NG, offsets_NG = u_NC.unflatten(-1, (8, -1)).max(dim=-1)
    code_NC = torch.zeros_like(u_NC).scatter(1, offsets_NG + torch.arange(0, c, c // 8), values_NG)
    assert (sae.rule, sae.facts.architecture) == (GroupMax(groups=8), "groupmax")
    agree(sae, tokens, code_NC, code_NC @ w["W_dec"] + w["b_dec"], w["W_dec"])


def test_zero_latents_stand_for_the_expansion_factor(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path / "a", weights_of(numbers, 12, 48), num_latents=0, expansion_factor=4)
    assert load_sae(folder).num_latents == 48


def test_facts_and_defaults_of_an_early_configuration(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path / "layers.3", weights_of(numbers, 12, 40))
    (folder / "cfg.json").write_text(json.dumps({"d_in": 12, "num_latents": 40, "k": 7, "signed": False}))
    sae = load_sae(folder)
    assert (sae.facts.format, sae.facts.architecture, sae.rule) == ("sparsify", "topk", TopK(k=7))
    assert (sae.facts.d_in, sae.facts.num_latents) == (12, 40)


@pytest.mark.parametrize(
    ("name", "site", "hook_name"),
    [
        ("layers.3", None, "blocks.3.hook_resid_post"),
        ("h.11", None, "blocks.11.hook_resid_post"),
        ("gpt_neox.layers.5", None, "blocks.5.hook_resid_post"),
        ("layers.3.mlp", "layers.3.mlp", None),
        ("my-run", None, None),
    ],
)
def test_the_site_is_read_from_the_folder(
    name: str, site: str | None, hook_name: str | None, tmp_path: Path, numbers: Any
) -> None:
    facts = load_sae(write(tmp_path / name, weights_of(numbers, 12, 40))).facts
    assert (facts.site, facts.hook_name) == (site, hook_name)


@pytest.mark.parametrize(
    ("name", "hook_name", "site", "reads"),
    [
        ("layers.3.mlp", None, "layers.3.mlp", "layers.3.mlp.input"),
        ("layers.3", "blocks.3.hook_resid_post", None, "blocks.3.hook_resid_pre"),
    ],
)
def test_a_transcoder_reads_what_its_module_takes_in(
    name: str, hook_name: str | None, site: str | None, reads: str, tmp_path: Path, numbers: Any
) -> None:
    facts = load_sae(write(tmp_path / name, weights_of(numbers, 12, 40), transcode=True)).facts
    assert (facts.hook_name, facts.site, facts.reads) == (hook_name, site, reads)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transcode": True}, "the name of its folder, 'a', is no module's; expected one such as layers.3.mlp"),
        ({"skip_connection": True}, "lacks W_skip"),
        ({"activation": "groupmax", "k": 7}, "7, the number of groups; expected a divisor of the 40 latents"),
        ({"activation": "relu"}, "'relu'; supported: topk, groupmax"),
        ({"signed": True}, "signed"),
        ({"k": 0}, "k in .* 0, expected a whole number from 1 to 40"),
        ({"k": 41}, "k in .* 41"),
        ({"d_in": None}, "d_in in .* None"),
        ({"num_latents": -1}, "num_latents in .* -1"),
        ({"transcode": "no"}, "expected bool"),
        ({"num_latents": 41}, r"encoder.weight .*\(40, 12\), expected \(41, 12\)"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / "a", weights_of(numbers, 12, 40), **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": None}, "lacks W_dec"),
        ({"W_skip": torch.zeros(12, 12)}, "has the unknown W_skip"),
        ({"W_dec": torch.zeros(12, 40)}, r"expected \(40, 12\)\. It looks transposed"),
        ({"b_dec": torch.full((12,), float("nan"))}, "12 NaN or Inf"),
    ],
)
def test_wrong_weights_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / "a", weights_of(numbers, 12, 40) | changes))


def test_a_missing_configuration_and_a_fact_without_effect_are_refused(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path / "a", weights_of(numbers, 12, 40))
    for by_hand in ({"norm_factor": 2.0}, {"k": 5}):
        with pytest.raises(SaeError, match="no effect on an SAE of the format 'EleutherAI sparsify"):
            load_sae(folder, **by_hand)
    (folder / "cfg.json").unlink()
    with pytest.raises(SaeError, match=r"cfg\.json is missing"):
        load_sae(folder)
