"""Objectives: the scalar m that is differentiated, read off the output a few rows at a time.

Every built-in objective is a sum over *read rows*: positions whose logits are looked at. So the logits of a chunk of
rows give the value and the gradient with respect to those rows' final hidden states, and nothing of size [tokens,
vocabulary] outlives its chunk. A sum over sequences, never a mean: a score must not depend on its batch mates.

Letters: B windows, T positions, R read rows, V vocabulary, D width.
"""

import hashlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gradsae_fast.errors import ConfigError
from gradsae_fast.method import ANSWER_OBJECTIVES
from gradsae_fast.model.head import head_logits
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.records import Array, Batch, Window
from gradsae_fast.stages import span
from gradsae_fast.transfer import to_device

ObjectiveFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Own objective: (logits [1, T, V], token_ids [1, T], mask [1, T] of scored tokens) -> scalar; called once a window."""

RowValue = Callable[[Tensor, Tensor], Tensor]
"""(logits [R, V] in float32, target ids [R, K]) -> value of each row [R]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A named scalar; `function` is the caller's own, None for the built-in ones."""

    name: str
    function: ObjectiveFunction | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveGradient:
    """Value of m for each window, and its gradient with respect to the body's output."""

    values_B: Array  # float64
    grad_BTD: Tensor


class _LogProb(torch.autograd.Function):
    """Log probability of one token of each row.

    Its gradient, onehot - softmax, is made where the log probabilities stand: nothing in a run is as large as logits,
    and each pass over them is time. It can be asked for once.
    """

    @staticmethod
    def forward(ctx: Any, logits_RV: Tensor, target_R1: Tensor) -> Tensor:
        log_prob_RV = torch.log_softmax(logits_RV, -1)
        ctx.save_for_backward(log_prob_RV, target_R1)
        return log_prob_RV.gather(1, target_R1)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None]:
        log_prob_RV, target_R1 = ctx.saved_tensors
        grad_RV = log_prob_RV.exp_().neg_()
        grad_RV.scatter_add_(1, target_R1, torch.ones_like(target_R1, dtype=grad_RV.dtype))
        return grad_RV.mul_(grad_R[:, None]), None


def _log_prob(logits_RV: Tensor, target_RK: Tensor) -> Tensor:
    if logits_RV.is_cuda:  # there the library's own two kernels read and write less
        return -F.cross_entropy(logits_RV, target_RK[:, 0], reduction="none")
    return _LogProb.apply(logits_RV, target_RK)


def _entropy(logits_RV: Tensor, _target_RK: Tensor) -> Tensor:
    log_prob_RV = torch.log_softmax(logits_RV, -1)
    return -(log_prob_RV.exp() * log_prob_RV).sum(-1)


def _logit_difference(logits_RV: Tensor, target_RK: Tensor) -> Tensor:
    chosen_RK = logits_RV.gather(1, target_RK)
    return chosen_RK[:, 0] - chosen_RK[:, 1]


def _of_top_token(values_RV: Tensor, held_RK: Tensor) -> Tensor:
    """The value at the held token, else at the first arg-max: differentiating a maximum would average over ties."""
    token_R1 = held_RK if held_RK.shape[1] else values_RV.argmax(1, keepdim=True)
    return values_RV.gather(1, token_R1)[:, 0]


_ROW_VALUES: dict[str, RowValue] = {
    "next-token": _log_prob,
    "continuation": _log_prob,
    # log p is differentiated; p multiplies when scores are read, so that long answers do not underflow.
    "continuation-prob": _log_prob,
    "top-token:logit": _of_top_token,
    "top-token:logprob": lambda logits_RV, held_RK: _of_top_token(torch.log_softmax(logits_RV, -1), held_RK),
    "top-token:prob": lambda logits_RV, held_RK: _of_top_token(torch.log_softmax(logits_RV, -1), held_RK).exp(),
    "logit-diff": _logit_difference,
    "entropy": _entropy,
}
_TOP_TOKEN = ("top-token:logit", "top-token:logprob", "top-token:prob")


@span("head")
def objective_gradient(
    lm: LanguageModel,
    objective: Objective,
    batch: Batch,
    body_output: Any,
    *,
    chunk: int,
    top_tokens: Array | None = None,
) -> ObjectiveGradient:
    """Value and gradient of one objective, given the body's output on the batch; `chunk` rows have logits at a time.

    `top_tokens` are the ids [B] that a `top-token` objective is about, so that several outputs are read at one token;
    None: what each window predicts. Other objectives do not look at them.
    """
    grad_BTD = torch.zeros_like(body_output[0], memory_format=torch.contiguous_format)
    values_B = _walk(lm, objective, batch, body_output, chunk, grad_BTD, top_tokens)
    return ObjectiveGradient(values_B=values_B, grad_BTD=grad_BTD)


@span("head")
def objective_values(
    lm: LanguageModel,
    objective: Objective,
    batch: Batch,
    body_output: Any,
    *,
    chunk: int,
    top_tokens: Array | None = None,
) -> Array:
    """The values of `objective_gradient`, float64 [B], to the same bits and without the work of a gradient."""
    with torch.no_grad():
        return _walk(lm, objective, batch, body_output, chunk, None, top_tokens)


def predicted_tokens(
    lm: LanguageModel, objective: Objective, batch: Batch, body_output: Any, *, chunk: int
) -> Array | None:
    """The ids int64 [B] of the tokens that a `top-token` objective chooses here; None for any other objective."""
    if objective.name not in _TOP_TOKEN:
        return None
    last_B = torch.tensor([len(window.token_ids) - 1 for window in batch.windows], device=body_output[0].device)
    hidden_BD = body_output[0][torch.arange(len(last_B), device=last_B.device), last_B]
    with torch.no_grad():
        tokens = [
            head_logits(lm.model, lm.body_path, body_output, hidden_RD).float().argmax(1)
            for hidden_RD in hidden_BD.split(chunk)
        ]
    return np.asarray(torch.cat(tokens).cpu().numpy())


def _walk(
    lm: LanguageModel,
    objective: Objective,
    batch: Batch,
    body_output: Any,
    chunk: int,
    grad_BTD: Tensor | None,
    top_tokens: Array | None,
) -> Array:
    """Value for each window, `chunk` read rows at a time; their gradients go into `grad_BTD`, where there is one."""
    hidden_BTD = body_output[0].detach()
    values_B = np.zeros(len(batch.windows))
    if objective.function is not None:
        for index, window in enumerate(batch.windows):
            leaf_TD = hidden_BTD[index, : len(window.token_ids)].detach().requires_grad_(grad_BTD is not None)
            value = _own_value(lm, objective.function, window, body_output, leaf_TD)
            if grad_BTD is not None:
                grad_BTD[index, : len(leaf_TD)] = torch.autograd.grad(value, leaf_TD)[0]
            values_B[index] = value.item()
        return values_B

    reads = [_reads(objective.name, window) for window in batch.windows]
    window_R = np.repeat(np.arange(len(reads)), [len(positions) for positions, _ in reads])
    row_R = window_R * hidden_BTD.shape[1] + np.concatenate([positions for positions, _ in reads])
    target_RK = np.concatenate([targets for _, targets in reads])
    if top_tokens is not None and objective.name in _TOP_TOKEN:
        target_RK = top_tokens[:, None]  # one row is read in a window
    if len(row_R) == 0:
        return values_B
    flat_hidden = hidden_BTD.flatten(0, 1)
    all_rows_R, all_targets_RK = (to_device(array, hidden_BTD.device) for array in (row_R, target_RK))
    parts = []
    for rows, targets in zip(all_rows_R.split(chunk), all_targets_RK.split(chunk), strict=True):
        leaf_RD = flat_hidden[rows].requires_grad_(grad_BTD is not None)
        logits_RV = head_logits(lm.model, lm.body_path, body_output, leaf_RD).float()
        value_R = _ROW_VALUES[objective.name](logits_RV, targets)
        if grad_BTD is not None:
            grad_BTD.flatten(0, 1)[rows] = torch.autograd.grad(value_R.sum(), leaf_RD)[0]
        parts.append(value_R.detach())
    np.add.at(values_B, window_R, torch.cat(parts).double().cpu().numpy())
    return values_B


def _own_value(
    lm: LanguageModel, function: ObjectiveFunction, window: Window, body_output: Any, leaf_TD: Tensor
) -> Tensor:
    """The caller's function of one window's logits, a scalar. ConfigError where it is none."""
    logits_TV = head_logits(lm.model, lm.body_path, body_output, leaf_TD).float()
    ids_T = torch.from_numpy(window.token_ids.astype(np.int64)).to(leaf_TD.device)
    mask_T = torch.arange(len(leaf_TD), device=leaf_TD.device) >= window.num_context
    value = function(logits_TV[None], ids_T[None], mask_T[None])
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = getattr(value, "shape", type(value))
        raise ConfigError(f"an objective must return a scalar tensor; got {found}. Sum over positions.")
    return value


def _reads(name: str, window: Window) -> tuple[Array, Array]:
    """Positions of the window whose logits are read [R], and the token ids looked up there [R, K]."""
    if name == "next-token" or name in ANSWER_OBJECTIVES:
        return _predictions(window, 0 if name == "next-token" else _answer_start(name, window))
    _require_whole_document(name, window)
    pair = window.document.contrast_ids if name == "logit-diff" else ()
    if pair is None:
        raise ConfigError(f"document {window.document.document.key!r} has no contrast tokens. Set contrast_columns.")
    return np.array([len(window.token_ids) - 1]), np.array([pair], np.int64).reshape(1, -1)


def _predictions(window: Window, first_target: int) -> tuple[Array, Array]:
    """Scored positions whose next token counts: from `first_target` of the document on, and no special token.

    The next token of a window's last position lies in the next window; it is known all the same. So each target counts
    once, where the token before it is scored, and no scored token loses its nearest target to a window's edge.
    """
    document = window.document
    position_W = np.arange(window.num_context, len(window.token_ids))
    target_W = position_W - window.num_context + window.first_position + 1
    position_W, target_W = position_W[target_W < document.num_tokens], target_W[target_W < document.num_tokens]
    kept = (target_W >= first_target) & ~document.special[target_W]
    return position_W[kept], document.token_ids[target_W[kept], None].astype(np.int64)


def _answer_start(name: str, window: Window) -> int:
    start = window.document.answer_start
    if start is None:
        key = window.document.document.key
        raise ConfigError(f"document {key!r} has no answer for {name!r}. Set prompt_column and answer_column.")
    return start


def _require_whole_document(name: str, window: Window) -> None:
    if len(window.token_ids) != window.document.num_tokens:
        raise ConfigError(
            f"objective {name!r} reads the last position, but document {window.document.document.key!r} has "
            f"{window.document.num_tokens} tokens and does not fit one window. Raise --context-length to that, or cut "
            "the document's text in the corpus."
        )


def function_digest(function: ObjectiveFunction) -> str:
    """What tells two functions of the same name apart: their code and constants, not what they refer to."""
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return hashlib.sha256(_code_text(code).encode() if code else type(function).__qualname__.encode()).hexdigest()


def _code_text(code: types.CodeType) -> str:
    constants = [_code_text(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, constants))
