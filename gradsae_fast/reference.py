"""The oracle: influence by autograd through a dense SAE, slow and obvious.

One run of the whole model on one window, logits whole, latents a dense leaf [T, C] that requires grad. At a spliced
position the network sees the decoded latents; elsewhere it sees the hidden state with the decoded latents added and
subtracted, so that the value is unchanged and the gradient still reaches the latents. Used by the gate before every
run, by tests, and by anyone in doubt.

Letters: T positions of a window, C latents, D width, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.method import Method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.patching import output_hook
from gradsae_fast.records import Array, Batch, Window
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.score import SitedSae, position_masks


def dense_influence(
    lm: LanguageModel, sited: SitedSae, method: Method, objective: Objective, window: Window
) -> tuple[Tensor, Tensor]:
    """Activations and influences [T, C] of all positions of one window, context included."""
    ids_T = torch.from_numpy(window.token_ids.astype(np.int64)).to(lm.device)
    mask_T = position_masks(Batch(windows=(window,), token_ids_BT=window.token_ids[None]))
    latents: list[Tensor] = []

    def change(hidden_1TD: Tensor) -> Tensor:
        hidden_TD = hidden_1TD[0].detach().float()
        latents.append(encode_dense(sited.sae, hidden_TD).detach().requires_grad_())
        _, stats = normalise_input(sited.sae, hidden_TD)
        decoded_TD = decode_dense(sited.sae, latents[0], stats)
        error_TD = (hidden_TD - decoded_TD).detach()
        sink_T = hidden_TD.norm(dim=1).cpu().numpy() > sited.sink_norm
        keep_T = _spliced(method, mask_T, sink_T)
        kept_error_TD = torch.where(
            torch.from_numpy(keep_T).to(lm.device)[:, None], torch.zeros_like(error_TD), error_TD
        )
        return (decoded_TD + kept_error_TD)[None].to(hidden_1TD.dtype)

    with torch.enable_grad(), output_hook(lm.model.get_submodule(sited.site.path), change):
        logits_TV = lm.model(input_ids=ids_T[None], use_cache=False).logits[0].float()
    value = objective_value(objective, logits_TV, window)
    grad_TC = torch.autograd.grad(value, latents[0])[0]
    return latents[0].detach(), latents[0].detach() * grad_TC


def objective_value(objective: Objective, logits_TV: Tensor, window: Window) -> Tensor:
    """The scalar m of one window, written position by position; `continuation-prob` gives log p, as it is stored."""
    document = window.document
    if objective.function is not None:
        ids_T = torch.from_numpy(window.token_ids.astype(np.int64)).to(logits_TV.device)
        mask_T = torch.arange(len(ids_T), device=logits_TV.device) >= window.num_context
        return objective.function(logits_TV[None], ids_T[None], mask_T[None])
    log_prob_TV = torch.log_softmax(logits_TV, -1)
    last_V = logits_TV[-1]
    match objective.name:
        case "next-token" | "continuation" | "continuation-prob":
            first = 0 if objective.name == "next-token" else document.answer_start
            assert first is not None
            total = logits_TV.new_zeros(())
            for position in range(window.num_context, len(window.token_ids)):
                target = position - window.num_context + window.first_position + 1
                if first <= target < document.num_tokens and not document.special[target]:
                    total = total + log_prob_TV[position, int(document.token_ids[target])]
            return total
        case "top-token:logit":
            return last_V[last_V.argmax()]
        case "top-token:logprob":
            return log_prob_TV[-1][last_V.argmax()]
        case "top-token:prob":
            return last_V.softmax(-1)[last_V.argmax()]
        case "logit-diff":
            assert document.contrast_ids is not None
            first_id, second_id = document.contrast_ids
            return last_V[first_id] - last_V[second_id]
        case "entropy":
            return torch.distributions.Categorical(logits=last_V).entropy()
    raise AssertionError(f"objective {objective.name!r} has no reference")


def _spliced(method: Method, mask_T: Array, sink_T: Array) -> Array:
    """Positions at which the reconstruction replaces the hidden state, bool [T]."""
    if method.splice == "none":
        return np.zeros(len(mask_T), bool)
    return np.ones(len(mask_T), bool) if method.splice == "all" else (mask_T == 0) & ~sink_T
