"""OpenAI's GPT-2 files: the published formula with its layer norm, the facts in the path, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import InputNorm, TopK
from gradsae_fast.sae.load import load_sae

K = 5
FOLDER = Path("resid_post_mlp_v5_32k/autoencoders")


def state_of(numbers: Any, d: int = 12, c: int = 40, **changes: Any) -> dict[str, Any]:
    """As the released Autoencoder's state_dict() writes it."""
    state = {
        "pre_bias": numbers(d),
        "latent_bias": numbers(c),
        "stats_last_nonzero": torch.zeros(c, dtype=torch.long),
        "latents_activation_frequency": torch.ones(c),
        "latents_mean_square": torch.zeros(c),
        "encoder.weight": numbers(c, d),
        "decoder.weight": numbers(d, c),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    } | changes
    return {key: each for key, each in state.items() if each is not None}


def write(folder: Path, state: dict[str, Any], name: str = "8.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    return folder / name


def test_a_top_k_file_normalises_its_input_and_undoes_it(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any, top_k: Any
) -> None:
    state = state_of(numbers, *widths)
    w = {key: each.double() for key, each in state.items() if isinstance(each, Tensor)}
    mean = tokens.double().mean(1, keepdim=True)
    std = (tokens.double() - mean).std(1, keepdim=True)
    x = (tokens.double() - mean) / (std + 1e-5)
    code = torch.relu(top_k((x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"], K))
    decoded = (code @ w["decoder.weight"].T + w["pre_bias"]) * std + mean
    sae = load_sae(write(tmp_path / FOLDER, state))
    assert sae.input_norm is InputNorm.LAYER_NORM
    agree(sae, tokens, code, decoded, w["decoder.weight"].T * std[:, None])


def test_what_state_dict_says_twice_is_read_once(tmp_path: Path, numbers: Any) -> None:
    again = {"activation.k": K, "activation.postact_fn": "ReLU"}
    assert load_sae(write(tmp_path, state_of(numbers) | again)).rule == TopK(k=K)


def test_a_relu_file_of_the_first_releases_reads_the_hidden_state_as_it_is(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    state = state_of(numbers, *widths, activation="ReLU", activation_state_dict={})
    code = torch.relu((tokens - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])
    rows = state["decoder.weight"].T
    agree(load_sae(write(tmp_path, state)), tokens, code, code @ rows + state["pre_bias"], rows)


@pytest.mark.parametrize(
    ("folder", "hook_name"),
    [
        ("resid_post_mlp_v5_128k/autoencoders", "blocks.8.hook_resid_post"),
        ("resid_delta_mlp_v4/autoencoders", "blocks.8.hook_mlp_out"),
        ("resid_delta_attn_v5_32k/autoencoders", "blocks.8.hook_attn_out"),
        ("resid_post_attn_v5_32k/autoencoders", None),
        ("mine", None),
    ],
)
def test_facts_are_read_from_the_path(folder: str, hook_name: str | None, tmp_path: Path, numbers: Any) -> None:
    facts = load_sae(write(tmp_path / folder, state_of(numbers))).facts
    assert (facts.hook_name, facts.model_name, facts.format) == (hook_name, "openai-community/gpt2", "openai")
    assert (facts.architecture, facts.d_in, facts.num_latents) == ("TopK", 12, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "GELU"}, "'GELU'; supported: TopK, ReLU"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "'Identity'; supported: ReLU"),
        ({"activation_state_dict": {"postact_fn": "ReLU"}}, r"activation_state_dict\.k in .* None"),
        ({"decoder.weight": None}, "lacks decoder.weight"),
        ({"encoder.weight": torch.zeros(12, 40)}, "It looks transposed"),
        ({"latent_bias": torch.zeros(12), "pre_bias": torch.zeros(40)}, "It looks transposed"),
        ({"pre_bias": None}, "expected the vectors latent_bias and pre_bias, which are .*missing"),
        ({"pre_bias": torch.full((12,), float("inf"))}, "12 NaN or Inf"),
    ],
)
def test_a_wrong_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path, state_of(numbers, **changes)))


def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, numbers: Any, tripwire: Any) -> None:
    with pytest.raises(SaeError, match="a pickle can run code"):
        load_sae(write(tmp_path, state_of(numbers, activation=tripwire)))
