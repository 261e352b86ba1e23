"""Temporal SAEs as their authors publish them: the same SAE as in SAELens' layout, its site, and what is refused.

Letters: N tokens, D width, C latents.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae import hub
from gradsae_fast.sae.canonical import Threshold, TopK
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sparse_code import encode, reconstruct
from tests.temporal import temporal_weights, write_temporal

D, C, FACTOR = 12, 42, 0.37
LENGTHS = [1, 6, 2]
CONFIG: dict[str, dict[str, Any]] = {
    "data": {"context_length": 500, "dtype": "bfloat16"},
    "llm": {"model_hf_name": "google/gemma-2-2b", "dimin": D},
    "sae": {
        "sae_type": "temporal",
        "sae_diff_type": "topk",
        "tied_weights": True,
        "exp_factor": 3.5,
        "kval_topk": 5,
        "n_heads": 2,
        "n_attn_layers": 1,
        "bottleneck_factor": 3,
        "gamma_reg": 10,
        "scaling_factor": FACTOR,
    },
}
NAMES = {"W_dec": "D", "W_enc": "E", "b_dec": "b"}


def weights_of(**options: Any) -> dict[str, Tensor]:
    """Keys a third as wide as the codes, so that no width is a default's."""
    weights = temporal_weights(D, C, **options)
    generator = torch.Generator().manual_seed(2)
    for key in weights:
        if "q_target" in key or "k_ctx" in key:
            weights[key] = torch.randn(C // 3, *weights[key].shape[1:], generator=generator)
    return weights


def write(folder: Path, weights: dict[str, Tensor], *, section: str = "sae", **changes: Any) -> Path:
    """The published layout; `changes` go to a section of conf.yaml, those to None leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({NAMES.get(key, key): tensor for key, tensor in weights.items()}, folder / "latest_ckpt.safetensors")
    changed = {key: value for key, value in (CONFIG[section] | changes).items() if value is not None}
    (folder / "conf.yaml").write_text(yaml.safe_dump(CONFIG | {section: changed}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["topk", "relu"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_is_the_same_sae_as_in_the_layout_of_saelens(
    tied: bool, num_layers: int, kind: str, tmp_path: Path
) -> None:
    weights = weights_of(tied=tied, num_layers=num_layers)
    changes: dict[str, Any] = {"tied_weights": tied, "n_attn_layers": num_layers, "sae_diff_type": kind}
    found = load_sae(write(tmp_path / "published", weights, **changes))
    options = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": FACTOR}
    wanted = load_sae(
        write_temporal(
            tmp_path / "saelens", weights, sae_diff_type=kind, kval_topk=5, bottleneck_factor=3, n_heads=2, **options
        )
    )
    hidden_ND = 3 * torch.randn(sum(LENGTHS), D, generator=torch.Generator().manual_seed(1)) + 1
    code, same = (encode(sae, hidden_ND, LENGTHS) for sae in (found, wanted))
    assert len(code.rows.values) > sum(LENGTHS)
    assert all(torch.equal(one, other) for one, other in zip(code.rows, same.rows, strict=True))
    assert torch.equal(reconstruct(found, code), reconstruct(wanted, same))
    assert isinstance(found.rule, TopK if kind == "topk" else Threshold)
    assert (found.w_enc_CD is found.w_dec_CD) is tied


@pytest.mark.parametrize(
    ("folder", "hook_name"),
    [
        ("gemma-2-2B/layer_12/temporal", "blocks.12.hook_resid_post"),
        ("layer_3/copies/layer_15", "blocks.15.hook_resid_post"),
        ("sae", None),
    ],
)
def test_the_site_is_that_of_the_innermost_folder_of_a_layer(
    folder: str, hook_name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / folder, weights_of())
    found = [load_sae(each) for each in (path, path / "conf.yaml", path / "latest_ckpt.safetensors")]
    monkeypatch.chdir(path)
    found.append(load_sae("."))
    assert {sae.facts.hook_name for sae in found} == {hook_name}
    assert len({sae.facts.digest for sae in found}) == 1


def test_its_facts_are_those_of_the_configuration_and_of_the_training(tmp_path: Path) -> None:
    facts = load_sae(write(tmp_path, weights_of())).facts
    assert (facts.format, facts.architecture, facts.model_name) == ("temporal_saes", "temporal", "google/gemma-2-2b")
    assert (facts.prepend_bos, facts.context_size, facts.num_latents, facts.d_in) == (True, 500, C, D)


def test_without_a_k_every_positive_latent_is_active(tmp_path: Path) -> None:
    assert isinstance(load_sae(write(tmp_path, weights_of(), kval_topk=None)).rule, Threshold)


def test_a_hub_id_fetches_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "gemma-2-2B" / "layer_12" / "temporal", weights_of())
    asked: list[str] = []

    def snapshot(_repo: str, *, allow_patterns: list[str], **_options: Any) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    sae = load_sae("org/temporalSAEs/gemma-2-2B/layer_12/temporal")
    assert sae.facts.hook_name == "blocks.12.hook_resid_post"
    assert {f"gemma-2-2B/layer_12/temporal/{name}" for name in ("conf.yaml", "latest_ckpt.safetensors")} <= set(asked)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("sae", {"sae_type": "batchtopk"}, "sae_type in .* 'batchtopk'; supported: temporal"),
        ("sae", {"sae_diff_type": "nullify"}, "sae_diff_type in .* 'nullify'; supported: topk, relu"),
        (
            "sae",
            {"n_heads": None, "tied_weights": None},
            "'sae' of .* has no n_heads, tied_weights, it has ",
        ),
        ("sae", {"scaling_factor": None}, "scaling_factor in .* None, expected a positive finite number"),
        ("sae", {"exp_factor": "4"}, "exp_factor in .* '4', expected a positive finite number"),
        ("sae", {"exp_factor": 4}, r"D in .* has shape \(42, 12\), expected \(48, 12\)"),
        ("sae", {"tied_weights": False}, "lacks E"),
        ("sae", {"kval_topk": 43}, "kval_topk in .* 43, expected a whole number from 1 to 42"),
        ("llm", {"dimin": None}, "dimin in .* None, expected a positive whole number"),
        ("llm", {"model_hf_name": 2}, "model_hf_name in .* 2, expected str"),
        ("data", {"context_length": "500"}, "context_length in .* '500', expected int"),
    ],
    ids=str,
)
def test_what_is_of_another_recipe_is_refused(
    section: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path, weights_of(), section=section, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": torch.zeros(D, C)}, "has the unknown E"),
        ({"b_dec": torch.zeros(1, D)}, r"b in .* has shape \(1, 12\), expected \(12,\)"),
        ({"W_dec": torch.full((C, D), torch.nan)}, "D in .* holds 504 NaN"),
    ],
)
def test_wrong_weights_are_refused_under_their_own_names(
    changes: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path, weights_of() | changes))


def test_weights_without_their_configuration_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, weights_of())
    (folder / "conf.yaml").unlink()
    with pytest.raises(SaeError, match=r"conf\.yaml is missing"):
        load_sae(folder)
