"""Values that are asked for alone are those that come with a gradient, to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast.method import OBJECTIVE_UNITS
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective, objective_gradient, objective_values
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


def test_an_effect_on_a_probability_neither_overflows_nor_loses_small_ones() -> None:
    """p of 1e-13 that becomes 0.5 without the latent, a latent that hardly matters, and one that is everything."""
    value = np.array([-30.0, -2.0, -1.0])
    drop = np.array([-30.0 + np.log(2), 1e-12, 2000.0])
    expected = np.array([np.exp(-30.0) - 0.5, np.exp(-2.0) * 1e-12, np.exp(-1.0)])
    np.testing.assert_allclose(effect_in_unit("continuation-prob", value, drop), expected, rtol=1e-9)
    long_answer = effect_in_unit("continuation-prob", np.array([-1200.0]), np.array([-900.0]))
    np.testing.assert_allclose(long_answer, -np.exp(-300.0), rtol=1e-9)
    np.testing.assert_array_equal(effect_in_unit("continuation", value, drop), drop)
