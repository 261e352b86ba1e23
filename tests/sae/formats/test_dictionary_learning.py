"""dictionary_learning folders: every class against its published formula, and what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae

K, THRESHOLD = 5, 3.5
TURNED = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE")
STRAIGHT = ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
CLASSES = TURNED + STRAIGHT


def state_of(name: str, numbers: Any, d: int, c: int) -> dict[str, Any]:
    """A state dict under the names and in the orientations of the class."""
    if name in TURNED:
        state = {"encoder.weight": numbers(c, d), "decoder.weight": numbers(d, c)}
    else:
        state = {"W_enc": numbers(d, c), "W_dec": numbers(c, d), "b_enc": numbers(c)}
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    state[bias.get(name, "b_dec")] = numbers(d)
    if name in TURNED and name != "GatedAutoEncoder":
        state["encoder.bias"] = numbers(c)
    if name == "GatedAutoEncoder":
        state |= {key: numbers(c) for key in ("r_mag", "gate_bias", "mag_bias")}
    if name == "JumpReluAutoEncoder":
        state["threshold"] = numbers(c)  # this class leaves the sign of a threshold free
    if "TopK" in name:
        state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(THRESHOLD)}
    if name == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([c // 4, c - c // 4])
    return state


def write(folder: Path, name: str, state: Any, d: int, c: int, **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    config = {"dict_class": name, "activation_dim": d, "dict_size": c, "layer": 3, "lm_name": "EleutherAI/pythia-70m"}
    config |= {"k": K} if "TopK" in name else {}
    config |= {"submodule_name": "resid_post_layer_3"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128}}))
    return folder


def published(name: str, s: dict[str, Tensor], x: Tensor, top_k: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, reconstruction and effective rows, transcribed per class."""
    if name == "AutoEncoder":
        norm = s["decoder.weight"].norm(dim=0)
        weight, bias, rows = s["encoder.weight"] * norm[:, None], s["encoder.bias"] * norm, s["decoder.weight"] / norm
        code = torch.relu((x - s["bias"]) @ weight.T + bias)
        return code, code @ rows.T + s["bias"], rows.T
    if name == "AutoEncoderNew":
        code = torch.relu(x @ s["encoder.weight"].T + s["encoder.bias"])
        return code, code @ s["decoder.weight"].T + s["decoder.bias"], s["decoder.weight"].T
    if name == "GatedAutoEncoder":
        product = (x - s["decoder_bias"]) @ s["encoder.weight"].T
        gate = product + s["gate_bias"] > 0
        code = gate * torch.relu(s["r_mag"].exp() * product + s["mag_bias"])
        return code, code @ s["decoder.weight"].T + s["decoder_bias"], s["decoder.weight"].T
    if name == "JumpReluAutoEncoder":
        jump = x @ s["W_enc"] + s["b_enc"]
        code = torch.relu(jump * (jump > s["threshold"]))
        return code, code @ s["W_dec"] + s["b_dec"], s["W_dec"]
    if name == "MatryoshkaBatchTopKSAE":
        code = torch.relu((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"])
        code = code * (code > s["threshold"])
        return code, code @ s["W_dec"] + s["b_dec"], s["W_dec"]
    code = torch.relu((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"])
    code = code * (code > s["threshold"]) if name == "BatchTopKSAE" else top_k(code, K)
    return code, code @ s["decoder.weight"].T + s["b_dec"], s["decoder.weight"].T


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_computes_the_published_formula(
    name: str, tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any, top_k: Any
) -> None:
    d, c = widths
    state = state_of(name, numbers, d, c)
    folder = write(tmp_path / "ae", name, state, d, c)
    exact = {key: tensor.double() for key, tensor in state.items()}
    for path in (folder, folder / "ae.pt"):
        agree(load_sae(path), tokens, *published(name, exact, tokens.double(), top_k))


def test_an_activation_equal_to_the_shared_threshold_is_inactive(tmp_path: Path, numbers: Any) -> None:
    state = state_of("BatchTopKSAE", numbers, 12, 40)
    zeros = {"encoder.weight": torch.zeros(40, 12), "encoder.bias": torch.tensor([THRESHOLD, THRESHOLD + 1] * 20)}
    sae = load_sae(write(tmp_path / "ae", "BatchTopKSAE", state | zeros, 12, 40))
    assert (sae.bias_C > sae.rule.threshold_C).tolist() == [False, True] * 20  # type: ignore[union-attr]


def test_facts_are_read_from_the_configuration(tmp_path: Path, numbers: Any) -> None:
    facts = load_sae(write(tmp_path / "a", "BatchTopKSAE", state_of("BatchTopKSAE", numbers, 12, 40), 12, 40)).facts
    assert (facts.format, facts.architecture) == ("dictionary_learning", "BatchTopKSAE")
    assert (facts.hook_name, facts.model_name) == ("blocks.3.hook_resid_post", "EleutherAI/pythia-70m")
    assert (facts.context_size, facts.published_l0, facts.d_in, facts.num_latents) == (128, 5.0, 12, 40)


@pytest.mark.parametrize("submodule", [None, "mlp_out", "resid_post_layer_4"])
def test_a_site_that_is_not_named_is_not_guessed(submodule: str | None, tmp_path: Path, numbers: Any) -> None:
    state = state_of("AutoEncoder", numbers, 12, 40)
    assert (
        load_sae(write(tmp_path / "a", "AutoEncoder", state, 12, 40, submodule_name=submodule)).facts.hook_name is None
    )


def test_early_top_k_files_without_buffers_load(tmp_path: Path, numbers: Any) -> None:
    state = state_of("AutoEncoderTopK", numbers, 12, 40)
    del state["k"], state["threshold"]
    assert load_sae(write(tmp_path / "a", "AutoEncoderTopK", state, 12, 40)).rule.k == K  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "changes", "trainer", "message"),
    [
        ("AutoEncoder", {}, {"dict_class": "CrossCoder"}, "'CrossCoder'; supported: AutoEncoder, AutoEncoderNew"),
        ("AutoEncoder", {}, {"dict_class": None}, "None; supported"),
        ("AutoEncoder", {}, {"dict_class": "AutoEncoderNew"}, "lacks decoder.bias and has the unknown bias"),
        ("AutoEncoder", {}, {"dict_size": 41}, r"\(40, 12\), expected \(41, 12\)"),
        ("AutoEncoder", {"encoder.weight": torch.zeros(12, 40)}, {}, "It looks transposed"),
        ("AutoEncoder", {"encoder.weight": "text"}, {}, "is 'text', expected a tensor"),
        ("AutoEncoderTopK", {}, {"k": 6}, r"k in .* is \[5\], but config\.json beside it says 6"),
        ("AutoEncoderTopK", {}, {"k": None}, "k in .* None, expected a whole number"),
        ("BatchTopKSAE", {"threshold": torch.tensor(-1.0)}, {}, "negative for 40 of 40.*'not tracked'"),
        ("BatchTopKSAE", {"threshold": None}, {}, "stores no threshold"),
        ("BatchTopKSAE", {"threshold": torch.zeros(40)}, {}, r"threshold .*\(40,\), expected \(\)"),
        (
            "MatryoshkaBatchTopKSAE",
            {"group_sizes": torch.tensor([1, 2])},
            {},
            r"\[1, 2\], expected sizes that sum to 40",
        ),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": None}, {}, "group_sizes in .* is None, expected sizes"),
        ("JumpReluAutoEncoder", {"threshold": None}, {}, "lacks threshold"),
    ],
)
def test_a_wrong_folder_is_refused(
    name: str, changes: dict[str, Any], trainer: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    state = {key: each for key, each in (state_of(name, numbers, 12, 40) | changes).items() if each is not None}
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / "ae", name, state, 12, 40, **trainer))


def test_a_configuration_without_a_trainer_is_refused(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path / "ae", "AutoEncoder", state_of("AutoEncoder", numbers, 12, 40), 12, 40)
    (folder / "config.json").write_text("{}")
    with pytest.raises(SaeError, match="has no 'trainer', it has nothing"):
        load_sae(folder)


@pytest.mark.parametrize("dump", [torch.save, lambda state, file: file.write_bytes(pickle.dumps(state, protocol=2))])
def test_code_in_a_pickle_is_refused_and_not_run(
    dump: Callable[[Any, Path], None], tmp_path: Path, numbers: Any, tripwire: Any
) -> None:
    state = state_of("AutoEncoder", numbers, 12, 40)
    folder = write(tmp_path / "ae", "AutoEncoder", state, 12, 40)
    dump(state | {"bias": tripwire}, folder / "ae.pt")
    with pytest.raises(SaeError, match=r"not a torch file of tensors and plain values alone.*state_dict\(\)"):
        load_sae(folder)


def test_a_damaged_torch_file_is_refused(tmp_path: Path, numbers: Any) -> None:
    folder = write(tmp_path / "ae", "AutoEncoder", state_of("AutoEncoder", numbers, 12, 40), 12, 40)
    whole = (folder / "ae.pt").read_bytes()
    for content in (b"", b"PK", whole[:300], whole[:-40], b"not a torch file at all"):
        (folder / "ae.pt").write_bytes(content)
        with pytest.raises(SaeError, match="torch file"):
            load_sae(folder)
    torch.save([torch.zeros(3)], folder / "ae.pt")
    with pytest.raises(SaeError, match="holds a list, expected a state dict"):
        load_sae(folder)
