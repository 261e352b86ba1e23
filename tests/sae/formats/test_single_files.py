"""Goodfire, qresearch and Qwen Scope: torch files that are known by their names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae import hub
from gradsae_fast.sae.canonical import TopK
from gradsae_fast.sae.load import load_sae

GOODFIRE_70B = "Llama-3.3-70B-Instruct-SAE-l50.pt"
GOODFIRE = {"Llama-3.1-8B-Instruct-SAE-l19.pth": 91.0, GOODFIRE_70B: 121.0}
QRESEARCH = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
QWEN = "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W1K-L0_5/snapshots/abc"


def linear_state(numbers: Any, suffix: str, d: int = 12, c: int = 40) -> dict[str, Any]:
    return {
        f"encoder{suffix}.weight": numbers(c, d),
        f"encoder{suffix}.bias": numbers(c),
        f"decoder{suffix}.weight": numbers(d, c),
        f"decoder{suffix}.bias": numbers(d),
    }


def qwen_state(numbers: Any, d: int = 12, c: int = 40) -> dict[str, Any]:
    return {"W_enc": numbers(c, d), "W_dec": numbers(d, c), "b_enc": numbers(c), "b_dec": numbers(d)}


def write(file: Path, state: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: each for key, each in state.items() if each is not None}, file)
    return file


@pytest.mark.parametrize(("name", "suffix"), [*((name, "_linear") for name in GOODFIRE), (QRESEARCH, "")])
def test_a_relu_file_computes_the_published_formula(
    name: str, suffix: str, tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    w = linear_state(numbers, suffix, *widths)
    write(tmp_path / name, w)
    code = torch.relu(tokens @ w[f"encoder{suffix}.weight"].T + w[f"encoder{suffix}.bias"])
    rows = w[f"decoder{suffix}.weight"].T
    for path in (tmp_path, tmp_path / name):
        agree(load_sae(path), tokens, code, code @ rows + w[f"decoder{suffix}.bias"], rows)


def test_facts_of_the_relu_files_are_those_of_their_names(tmp_path: Path, numbers: Any) -> None:
    for name, l0 in GOODFIRE.items():
        facts = load_sae(write(tmp_path / name, linear_state(numbers, "_linear"))).facts
        layer = "19" if "l19" in name else "50"
        assert (facts.format, facts.published_l0, facts.hook_name) == (
            "goodfire",
            l0,
            f"blocks.{layer}.hook_resid_post",
        )
        assert facts.model_name == f"meta-llama/{name.split('-SAE')[0]}"
    facts = load_sae(write(tmp_path / QRESEARCH, linear_state(numbers, ""))).facts
    assert (facts.format, facts.hook_name) == ("qresearch", "blocks.19.hook_resid_post")
    assert facts.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


@pytest.mark.parametrize(
    ("name", "suffix", "changes", "message"),
    [
        (QRESEARCH, "", {"decoder.bias": None}, r"which are \(40,\), missing"),
        (QRESEARCH, "", {"decoder.weight": None}, "lacks decoder.weight"),
        (QRESEARCH, "", {"decoder.weight": torch.zeros(40, 12)}, "It looks transposed"),
        (QRESEARCH, "", {"encoder.weight": torch.zeros(40)}, r"expected \(40, 12\)"),
        (GOODFIRE_70B, "_linear", {"encoder_linear.bias": None}, r"which are missing, \(12,\)"),
        (GOODFIRE_70B, "_linear", {"b_dec": torch.zeros(12)}, "has the unknown b_dec"),
        (GOODFIRE_70B, "_linear", {"encoder_linear.bias": torch.zeros(12)}, r"expected \(12, 12\)"),
    ],
)
def test_a_wrong_relu_file_is_refused(
    name: str, suffix: str, changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / name, linear_state(numbers, suffix) | changes))


def test_a_qwen_scope_file_computes_the_published_formula(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any, top_k: Any
) -> None:
    w = qwen_state(numbers, *widths)
    sae = load_sae(write(tmp_path / "layer0.sae.pt", w), k=5)
    code = torch.relu(top_k(tokens @ w["W_enc"].T + w["b_enc"], 5))
    agree(sae, tokens, code, code @ w["W_dec"].T + w["b_dec"], w["W_dec"].T)


def test_k_and_the_model_are_in_the_repositorys_name(tmp_path: Path, numbers: Any) -> None:
    file = write(tmp_path / QWEN / "layer27.sae.pt", qwen_state(numbers, c=1024))
    sae = load_sae(file)
    assert sae.rule == TopK(k=5)
    assert (sae.facts.format, sae.facts.hook_name) == ("qwen_scope", "blocks.27.hook_resid_post")
    assert sae.facts.model_name == "Qwen/Qwen3-1.7B-Base"
    with pytest.raises(SaeError, match="k=6 contradicts"):
        load_sae(file, k=6)
    with pytest.raises(SaeError, match="40 latents, but its repository is named for 1024"):
        load_sae(write(file, qwen_state(numbers)))


def test_k_is_asked_for_and_part_of_the_digest(tmp_path: Path, numbers: Any) -> None:
    file = write(tmp_path / "layer0.sae.pt", qwen_state(numbers))
    with pytest.raises(SaeError, match=r"does not store k.*give k"):
        load_sae(file)
    assert load_sae(file, k=5).facts.digest != load_sae(file, k=6).facts.digest
    with pytest.raises(SaeError, match="expected a whole number from 1 to 40"):
        load_sae(file, k=41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": None}, "lacks W_dec"),
        ({"W_enc": torch.zeros(12, 40)}, "It looks transposed"),
        ({"b_enc": torch.zeros(1, 40)}, r"expected the vectors b_enc and b_dec, which are \(1, 40\), \(12,\)"),
        ({"b_dec": torch.full((12,), float("nan"))}, "12 NaN or Inf"),
    ],
)
def test_a_wrong_qwen_scope_file_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / "layer0.sae.pt", qwen_state(numbers) | changes), k=5)


def test_a_folder_of_layers_names_its_files(tmp_path: Path, numbers: Any) -> None:
    write(tmp_path / "layer0.sae.pt", qwen_state(numbers))
    with pytest.raises(SaeError, match=r"an SAE lies in layer0\.sae\.pt: give that file"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["layer0.sae.pt", QRESEARCH, *GOODFIRE])
def test_code_in_a_file_is_refused_and_not_run(name: str, tmp_path: Path, numbers: Any, tripwire: Any) -> None:
    with pytest.raises(SaeError, match="a pickle can run code"):
        load_sae(write(tmp_path / name, {"code": tripwire}))


def test_a_file_named_after_its_layer_is_fetched_alone(
    tmp_path: Path, numbers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "layer0.sae.pt", qwen_state(numbers))
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    sae = load_sae("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer0.sae.pt", k=5)
    assert (asked["repo"], asked["allow_patterns"]) == ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", ["layer0.sae.pt"])
    assert sae.facts.format == "qwen_scope"
    with pytest.raises(SaeError, match=r"holds none of layer1\.sae\.pt"):
        load_sae("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer1.sae.pt", k=5)
