"""Greedy generation for many prompts at once, with an intervention at one site.

Prompts of a batch end at the same column: padding stands on the left, is masked, and gets no position. The model's
key-value cache holds what earlier steps computed, so that a step reads one token of each prompt. The intervention maps
the hidden states of real tokens as they pass, once each; with the cache, later tokens attend to edited states.

Letters: B prompts of a batch, T columns so far, F columns fed in one step, R real tokens among them, D width.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import ModelError
from gradsae_fast.experiment.intervene import Intervention, token_masks
from gradsae_fast.model.head import head_logits
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.records import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """Token ids that a model goes on from (at least one), and their TokenMask bits."""

    token_ids: Array  # integer [T]
    mask: Array  # uint8 [T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """When generation ends, and how it is computed; only `stop_ids` and `max_new_tokens` decide over the result."""

    stop_ids: frozenset[int]  # end an answer, and do not belong to it
    max_new_tokens: int = 16
    masked_ids: frozenset[int] = frozenset()  # special tokens: an intervention passes over them where its method does
    prompts_per_batch: int = 16
    use_cache: bool = True


def generate(
    lm: LanguageModel, prompts: Sequence[Prompt], decoding: Decoding, intervention: Intervention | None = None
) -> list[Array]:
    """The tokens that the model puts after each prompt, int64 each, without the stop token, in the prompts' order.

    `intervention` has one edit per prompt. ModelError where a prompt and its answer are longer than the model allows.
    """
    _check_lengths(lm, prompts, decoding)
    answers: list[Array] = [np.zeros(0, np.int64)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].token_ids))
    for start in range(0, len(order), decoding.prompts_per_batch):
        rows = order[start : start + decoding.prompts_per_batch]
        batch = _Batch(lm, [prompts[row] for row in rows], decoding, intervention and intervention.of(rows))
        for row, answer in zip(rows, batch.run(), strict=True):
            answers[row] = answer
    return answers


class _Batch:
    """Prompts that are generated together; grows by one column a step."""

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Prompt], decoding: Decoding, intervention: Intervention | None
    ) -> None:
        self.lm, self.decoding, self.intervention = lm, decoding, intervention
        width = max(len(prompt.token_ids) for prompt in prompts)
        ids_BT = np.zeros((len(prompts), width), np.int64)
        mask_BT = np.zeros((len(prompts), width), np.uint8)
        real_BT = np.zeros((len(prompts), width), bool)
        for row, prompt in enumerate(prompts):
            first = width - len(prompt.token_ids)
            ids_BT[row, first:], mask_BT[row, first:], real_BT[row, first:] = prompt.token_ids, prompt.mask, True
        self.ids_BT, self.mask_BT, self.real_BT = (
            torch.from_numpy(array).to(lm.device) for array in (ids_BT, mask_BT, real_BT)
        )
        self.prompt_width = width
        self.cache: Any = None

    def run(self) -> list[Array]:
        """Step until every prompt has met a stop token, or the limit is reached."""
        stop_ids = torch.tensor(sorted(self.decoding.stop_ids), device=self.lm.device)
        stopped_B = torch.zeros(len(self.ids_BT), dtype=torch.bool, device=self.lm.device)
        for _ in range(self.decoding.max_new_tokens):
            next_B = self._step()
            self._append(next_B)
            stopped_B |= torch.isin(next_B, stop_ids)
            if stopped_B.all():
                break
        return [self._until_stop(ids_T) for ids_T in self.ids_BT[:, self.prompt_width :].cpu().numpy()]

    @torch.no_grad()
    def _step(self) -> Tensor:
        """The most probable next token of each prompt [B]."""
        num_fed = 1 if self.cache is not None else self.ids_BT.shape[1]
        if self.intervention is None:
            output = self._forward(num_fed)
        else:
            with self.intervention.sited.site.hook(self.lm.model, self._changed):
                output = self._forward(num_fed)
        if self.decoding.use_cache:
            self.cache = output.past_key_values
        return head_logits(self.lm.model, self.lm.body_path, output, output[0][:, -1]).float().argmax(-1)

    def _forward(self, num_fed: int) -> Any:
        options: dict[str, Any] = {}
        # Models with learned or rotary positions would count the padding; those without the argument have neither.
        if "position_ids" in inspect.signature(self.lm.body.forward).parameters:
            options["position_ids"] = (self.real_BT.long().cumsum(1) - 1).clamp_min(0)[:, -num_fed:]
        return self.lm.body(
            input_ids=self.ids_BT[:, -num_fed:],
            attention_mask=self.real_BT.long(),
            past_key_values=self.cache,
            use_cache=self.decoding.use_cache,
            **options,
        )

    def _changed(self, hidden_BFD: Tensor) -> Tensor:
        """The hidden states of a step with the real ones edited."""
        assert self.intervention is not None
        num_fed = hidden_BFD.shape[1]
        real_BF = self.real_BT[:, -num_fed:]
        changed_BFD = hidden_BFD.clone()
        changed_BFD[real_BF] = self.intervention.change(
            hidden_BFD[real_BF], real_BF.nonzero()[:, 0], self.mask_BT[:, -num_fed:][real_BF]
        )
        return changed_BFD

    def _append(self, next_B: Tensor) -> None:
        masked = np.array(sorted(self.decoding.masked_ids), np.int64)
        mask_B = torch.from_numpy(token_masks(next_B.cpu().numpy(), masked)).to(next_B.device)
        self.ids_BT = torch.cat([self.ids_BT, next_B[:, None]], 1)
        self.mask_BT = torch.cat([self.mask_BT, mask_B[:, None]], 1)
        self.real_BT = torch.cat([self.real_BT, torch.ones_like(next_B[:, None], dtype=torch.bool)], 1)

    def _until_stop(self, ids_T: Array) -> Array:
        stops = np.flatnonzero(np.isin(ids_T, sorted(self.decoding.stop_ids)))
        return ids_T[: stops[0]] if len(stops) else ids_T


def _check_lengths(lm: LanguageModel, prompts: Sequence[Prompt], decoding: Decoding) -> None:
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    if lm.max_context is not None and longest + decoding.max_new_tokens > lm.max_context:
        raise ModelError(
            f"the longest prompt has {longest} tokens and its answer up to {decoding.max_new_tokens}, but "
            f"{lm.source!r} was built for at most {lm.max_context}. Leave it out, or lower --max-new-tokens."
        )
