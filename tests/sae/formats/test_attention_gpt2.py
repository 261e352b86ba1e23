"""Attention SAEs of GPT-2 small: the published formula, the layer in the name, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae

NAME = "gpt2-small_L7_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"


def weights_of(numbers: Any, d: int = 12, c: int = 40) -> dict[str, Any]:
    return {"W_enc": numbers(d, c), "W_dec": numbers(c, d), "b_enc": numbers(c), "b_dec": numbers(d)}


def write(folder: Path, weights: dict[str, Any], name: str = NAME) -> Path:
    torch.save(weights, folder / name)
    return folder / name


def test_a_file_computes_the_published_formula(
    tmp_path: Path, numbers: Any, widths: tuple[int, int], tokens: Tensor, agree: Any
) -> None:
    w = weights_of(numbers, *widths)
    code = torch.relu((tokens - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    agree(load_sae(write(tmp_path, w)), tokens, code, code @ w["W_dec"] + w["b_dec"], w["W_dec"])


def test_facts_are_read_from_the_name(tmp_path: Path, numbers: Any) -> None:
    facts = load_sae(write(tmp_path, weights_of(numbers))).facts
    assert (facts.hook_name, facts.reads, facts.model_name) == ("blocks.7.attn.hook_z", None, "openai-community/gpt2")
    assert (facts.format, facts.prepend_bos, facts.context_size) == ("attention_gpt2", True, 128)


def test_another_name_is_no_file_of_the_format(tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match="holds no SAE of a supported format"):
        load_sae(write(tmp_path, weights_of(numbers), "gpt2-small_L7_resid.pt"))


def test_code_in_the_file_is_not_run(tmp_path: Path, numbers: Any, tripwire: Any) -> None:
    with pytest.raises(SaeError, match="a pickle can run code"):
        load_sae(write(tmp_path, weights_of(numbers) | {"note": tripwire}))


def test_wrong_weights_are_refused(tmp_path: Path, numbers: Any) -> None:
    with pytest.raises(SaeError, match="It looks transposed"):
        load_sae(write(tmp_path, weights_of(numbers) | {"W_enc": torch.zeros(40, 12)}))
    with pytest.raises(SaeError, match="has the unknown scale"):
        load_sae(write(tmp_path, weights_of(numbers) | {"scale": torch.zeros(40)}))
