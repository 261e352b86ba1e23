"""Values that are asked for alone are those that come with a gradient, to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast.method import OBJECTIVE_UNITS
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective, objective_gradient, objective_values, predicted_tokens
from gradsae_fast.ranking.units import effect_in_unit
from gradsae_fast.records import Batch

ROWS: dict[str, Any] = {
    "prompt_column": "q",
    "answer_column": "a",
    "contrast_columns": ("yes", "no"),
}


def margin(logits_BTV: torch.Tensor, _ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    top_BT2 = logits_BTV.topk(2).values
    return (top_BT2[..., 0] - top_BT2[..., 1])[mask_BT].sum()


@pytest.mark.parametrize("name", [*OBJECTIVE_UNITS, "margin"])
def test_values_alone_are_those_of_the_gradient(
    name: str, tiny_lm: LanguageModel, make_batch: Callable[..., Batch]
) -> None:
    rows = [
        {"q": "The union is", "a": " strong and free.", "yes": " a", "no": " t"},
        {"q": "Taxes fall, farms", "a": " grow.", "yes": " t", "no": " a"},
    ]
    batch = make_batch(rows, context_length=64, **ROWS)
    objective = Objective(name=name, function=margin if name == "margin" else None)
    output = tiny_lm.body(input_ids=torch.from_numpy(batch.token_ids_BT), use_cache=False)
    with_gradient = objective_gradient(tiny_lm, objective, batch, output, chunk=3)
    np.testing.assert_array_equal(objective_values(tiny_lm, objective, batch, output, chunk=3), with_gradient.values_B)
    assert with_gradient.values_B.all()
    assert with_gradient.grad_BTD.any()


@pytest.mark.parametrize("name", ["top-token:logit", "top-token:logprob", "top-token:prob"])
def test_a_top_token_may_be_held_while_the_output_changes(
    name: str, tiny_lm: LanguageModel, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch([{"text": "The union is strong"}, {"text": "Taxes fall."}], context_length=64)
    objective = Objective(name=name)
    output = tiny_lm.body(input_ids=torch.from_numpy(batch.token_ids_BT), use_cache=False)
    last_B = [len(window.token_ids) - 1 for window in batch.windows]
    logits_BV = tiny_lm.model(input_ids=torch.from_numpy(batch.token_ids_BT)).logits[range(len(last_B)), last_B]
    chosen = predicted_tokens(tiny_lm, objective, batch, output, chunk=1)
    assert chosen is not None
    np.testing.assert_array_equal(chosen, logits_BV.argmax(1))
    as_chosen, anew = (
        objective_gradient(tiny_lm, objective, batch, output, chunk=3, top_tokens=tokens) for tokens in (chosen, None)
    )
    np.testing.assert_array_equal(as_chosen.values_B, anew.values_B)
    assert torch.equal(as_chosen.grad_BTD, anew.grad_BTD)
    read = {"logit": logits_BV, "logprob": logits_BV.log_softmax(-1), "prob": logits_BV.softmax(-1)}
    other = np.array([7, 11])
    expected_B = read[name.removeprefix("top-token:")][range(len(other)), other].detach().numpy()
    held = objective_gradient(tiny_lm, objective, batch, output, chunk=1, top_tokens=other)
    np.testing.assert_allclose(held.values_B, expected_B, rtol=1e-4)
    assert not torch.allclose(held.grad_BTD, anew.grad_BTD)
    values_B = objective_values(tiny_lm, objective, batch, output, chunk=1, top_tokens=other)
    np.testing.assert_array_equal(values_B, held.values_B)


def test_only_top_token_objectives_choose_a_token(tiny_lm: LanguageModel, make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([{"text": "The union is strong"}], context_length=64)
    output = tiny_lm.body(input_ids=torch.from_numpy(batch.token_ids_BT), use_cache=False)
    for objective in (Objective(name="next-token"), Objective(name="margin", function=margin)):
        assert predicted_tokens(tiny_lm, objective, batch, output, chunk=3) is None
        plain_B, held_B = (
            objective_values(tiny_lm, objective, batch, output, chunk=3, top_tokens=tokens)
            for tokens in (None, np.array([7]))
        )
        np.testing.assert_array_equal(plain_B, held_B)


def test_an_effect_on_a_probability_neither_overflows_nor_loses_small_ones() -> None:
    """p of 1e-13 that becomes 0.5 without the latent, a latent that hardly matters, and one that is everything."""
    value = np.array([-30.0, -2.0, -1.0])
    drop = np.array([-30.0 + np.log(2), 1e-12, 2000.0])
    expected = np.array([np.exp(-30.0) - 0.5, np.exp(-2.0) * 1e-12, np.exp(-1.0)])
    np.testing.assert_allclose(effect_in_unit("continuation-prob", value, drop), expected, rtol=1e-9)
    long_answer = effect_in_unit("continuation-prob", np.array([-1200.0]), np.array([-900.0]))
    np.testing.assert_allclose(long_answer, -np.exp(-300.0), rtol=1e-9)
    np.testing.assert_array_equal(effect_in_unit("continuation", value, drop), drop)
