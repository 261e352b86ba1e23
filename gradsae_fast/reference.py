"""The oracle: influence by autograd through a dense SAE, slow and obvious.

One run of the whole model on one window, logits whole, latents a dense leaf [T, C] that requires grad. At a spliced
position the network sees the decoded latents; elsewhere it sees the hidden state with the decoded latents added and
subtracted, so that the value is unchanged and the gradient still reaches the latents. Along a path there is one such
run for each of its points. Used by the gate before every run, by tests, and by anyone in doubt.

Letters: T positions of a window, C latents, D width, V vocabulary.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.method import Method, path_points
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.states import read_and_written
from gradsae_fast.positions import position_masks, scored_positions
from gradsae_fast.records import Array, Batch, TokenMask, Window, counted_tokens
from gradsae_fast.sae.canonical import normalise_input, scale_gradient, without_latents
from gradsae_fast.sae.reference import beside_dense, encode_dense
from gradsae_fast.score import SitedSae


def dense_influence(
    lm: LanguageModel, sited: SitedSae, method: Method, objective: Objective, window: Window
) -> tuple[Tensor, Tensor]:
    """Activations (or their differences from the patch's) and influences [T, C] of a window, context included."""
    batch = Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))
    read_TD, written_TD = (hidden.float() for hidden in read_and_written(lm, batch, [sited.wiring])[sited.site.path])
    latents_TC = encode_dense(sited.sae, read_TD).detach()
    change_TC, sink_T = latents_TC, sited.sinks(read_TD, written_TD)
    if method.patch:
        patch_TD = _patch_states(lm, sited, window)
        change_TC = latents_TC - encode_dense(sited.sae, patch_TD)
        sink_T |= sited.read_sinks(patch_TD)
    mask_T = position_masks(batch) | np.where(sink_T.cpu().numpy(), np.uint8(TokenMask.NORM), np.uint8(0))
    moved_T = counted_tokens(mask_T, method.include_special) & scored_positions(batch)

    decode, spliced_T = _decoder(sited, read_TD), _spliced(method, mask_T)
    whole_TD = decode(latents_TC)

    def logits(leaf_TC: Tensor) -> Tensor:
        changed_TD = decode(leaf_TC)
        return _logits(lm, sited, changed_TD, changed_TD - whole_TD, _column(spliced_T, lm), window)

    with torch.no_grad():
        top_token = int(logits(latents_TC)[-1].argmax())

    def gradient(share: float) -> Tensor:
        """That of the objective with respect to the latents [T, C], where `share` of a path is gone."""
        leaf_TC = (latents_TC - change_TC * torch.where(_column(moved_T, lm), 1.0 - share, 0.0)).requires_grad_()
        value = objective_value(objective, logits(leaf_TC), window, top_token)
        # A window without a target, such as one token alone, has a constant value.
        return torch.autograd.grad(value, leaf_TC)[0] if value.requires_grad else torch.zeros_like(leaf_TC)

    shares, weights = path_points(method.path_steps) if method.path_steps else ([1.0], [1.0])
    grad_TC = torch.stack([weight * gradient(share) for share, weight in zip(shares, weights, strict=True)]).sum(0)
    return change_TC, change_TC * grad_TC


def _patch_states(lm: LanguageModel, sited: SitedSae, window: Window) -> Tensor:
    """What the encoder reads of the patch text [T, D]."""
    assert window.patch_ids is not None
    batch = Batch(windows=(window,), token_ids_BT=window.patch_ids[None].astype(np.int64))
    read_TD, _ = read_and_written(lm, batch, [sited.wiring])[sited.site.path]
    return read_TD.float()


def _decoder(sited: SitedSae, read_TD: Tensor) -> Callable[[Tensor], Tensor]:
    """The reconstruction of the written sites [T, D] as a function of latents; what is beside them is constant."""
    sae = sited.sae
    x_TD, stats = normalise_input(sae, read_TD)
    constant_TD = without_latents(sae, beside_dense(sae, x_TD), stats).detach()
    return lambda latents_TC: scale_gradient(sae, latents_TC @ sae.w_dec_CD.float(), stats) + constant_TD


def _logits(
    lm: LanguageModel, sited: SitedSae, decoded_TD: Tensor, added_TD: Tensor, spliced_T1: Tensor, window: Window
) -> Tensor:
    """Logits [T, V] of the whole model: at spliced positions it sees what is decoded, elsewhere something is added."""
    sites = sited.wiring.writes
    ids_T = torch.from_numpy(window.token_ids.astype(np.int64)).to(lm.device)

    def put(decoded_TD: Tensor, added_TD: Tensor, hidden_1TD: Tensor) -> Tensor:
        here = hidden_1TD.device
        changed_1TD = hidden_1TD.float() + added_TD.to(here)
        return torch.where(spliced_T1.to(here), decoded_TD.to(here), changed_1TD).to(hidden_1TD.dtype)

    with ExitStack() as stack, torch.enable_grad():
        parts = (each_TD.chunk(len(sites), 1) for each_TD in (decoded_TD, added_TD))
        for site, *part in zip(sites, *parts, strict=True):
            stack.enter_context(site.hook(lm.model, partial(put, *part)))
        logits: Tensor = lm.model(input_ids=ids_T[None], use_cache=False).logits[0]
    return logits.float()


def _column(chosen_T: Array, lm: LanguageModel) -> Tensor:
    return torch.from_numpy(chosen_T).to(lm.device)[:, None]


def objective_value(objective: Objective, logits_TV: Tensor, window: Window, top_token: int | None = None) -> Tensor:
    """The scalar m of one window, written position by position; `continuation-prob` gives log p, as it is stored.

    `top_token` is the token of the `top-token` objectives; None: the one that these logits predict.
    """
    document = window.document
    if objective.function is not None:
        ids_T = torch.from_numpy(window.token_ids.astype(np.int64)).to(logits_TV.device)
        mask_T = torch.arange(len(ids_T), device=logits_TV.device) >= window.num_context
        return objective.function(logits_TV[None], ids_T[None], mask_T[None])
    log_prob_TV = torch.log_softmax(logits_TV, -1)
    last_V = logits_TV[-1]
    top = int(last_V.argmax()) if top_token is None else top_token
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
            return last_V[top]
        case "top-token:logprob":
            return log_prob_TV[-1][top]
        case "top-token:prob":
            return last_V.softmax(-1)[top]
        case "logit-diff":
            assert document.contrast_ids is not None
            first_id, second_id = document.contrast_ids
            return last_V[first_id] - last_V[second_id]
        case "entropy":
            return torch.distributions.Categorical(logits=last_V).entropy()
    raise AssertionError(f"objective {objective.name!r} has no reference")


def _spliced(method: Method, mask_T: Array) -> Array:
    """Positions at which the reconstruction replaces the hidden state, bool [T]."""
    if method.splice == "none":
        return np.zeros(len(mask_T), bool)
    return np.ones(len(mask_T), bool) if method.splice == "all" else mask_T == 0
