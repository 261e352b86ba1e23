"""The gradient that is written out by hand."""

import pytest
import torch
import torch.nn.functional as F

from gradsae_fast.model.objectives import _LogProb


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
def test_log_probability_and_its_gradient_equal_those_of_the_library(scale: float) -> None:
    logits_RV, target_R, weight_R = scale * torch.randn(7, 50), torch.randint(50, (7,)), torch.randn(7)
    ours, theirs = (logits_RV.clone().requires_grad_() for _ in range(2))
    value_R = _LogProb.apply(ours, target_R[:, None])
    expected_R = -F.cross_entropy(theirs, target_R, reduction="none")
    (value_R * weight_R).sum().backward()
    (expected_R * weight_R).sum().backward()
    torch.testing.assert_close(value_R, expected_R)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_its_gradient_can_be_asked_for_once() -> None:
    logits_RV = torch.randn(3, 5, requires_grad=True)
    value = _LogProb.apply(logits_RV, torch.tensor([[0], [1], [2]])).sum()
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
