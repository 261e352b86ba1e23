"""From the residual stream to logits with no decoder layer in between: the model's own final norm and head.

Every layer is passed over and the last one puts out the given rows, so what follows is the model's own code: RMSNorm or
LayerNorm with whatever weights (Gemma's 1 + w among them), output projections, scaling of logits, biases, soft-caps.

Letters: K rows, D width, V vocabulary.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.model.head import head_logits
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.patching import forward_replaced


def unembed(lm: LanguageModel, hidden_KD: Tensor) -> Tensor:
    """Logits [K, V] in float32 of the rows, each the final residual stream of a sequence of one token."""
    hidden_K1D = hidden_KD.to(lm.device, lm.dtype)[:, None]
    ids_K1 = torch.zeros(len(hidden_KD), 1, dtype=torch.long, device=lm.device)

    def put_out(*_args: Any, **_kwargs: Any) -> Any:
        return (hidden_K1D,) if lm.layers_give_tuples else hidden_K1D

    with torch.no_grad(), ExitStack() as stack:
        for layer in lm.layers:
            stack.enter_context(forward_replaced(layer, put_out))
        output = lm.body(input_ids=ids_K1, use_cache=False)
        return head_logits(lm.model, lm.body_path, output, output[0][:, 0]).float()
