"""The model's own head, applied to a few rows at a time, so that logits [tokens, vocabulary] are never whole in memory.

Calling `lm_head` directly is wrong for models that scale, cap or bias their logits. Here the body of the causal LM is
exchanged for a stub that hands out the rows in question, and the model's own forward does the rest, whatever that is.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gradsae_fast.errors import ModelError
from gradsae_fast.model.patching import submodule_replaced


class _BodyStub(nn.Module):
    """Stands where the body was, and puts out what it was given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def head_logits(model: nn.Module, body_path: str, body_output: Any, hidden_RD: Tensor) -> Tensor:
    """Logits [R, V] of final hidden states [R, D]; `body_output` is any output of the body, as a pattern."""
    if isinstance(body_output, tuple):
        output: Any = (hidden_RD[None], *body_output[1:])
    else:
        output = copy.copy(body_output)
        output.last_hidden_state = hidden_RD[None]
    ids_1R = torch.zeros(1, len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
    with submodule_replaced(model, body_path, _BodyStub(output)):
        return model(input_ids=ids_1R, use_cache=False).logits[0]


def check_head(model: nn.Module, body: nn.Module, body_path: str) -> None:
    """Refuse a model whose head, applied alone, differs from its own forward pass."""
    device = next(model.parameters()).device
    ids_1T = torch.arange(3, 11, device=device)[None]
    with torch.no_grad():
        whole_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
        output = body(input_ids=ids_1T, use_cache=False)
        alone_TV = head_logits(model, body_path, output, output[0][0]).float()
    difference = (whole_TV - alone_TV).abs().max().item()
    if not difference <= 1e-3 * whole_TV.abs().max().item():
        raise ModelError(
            f"the head of {type(model).__name__} cannot be applied on its own: logits differ by {difference:.3g} from "
            f"the model's forward pass (largest {whole_TV.abs().max().item():.3g}). It is not supported."
        )
