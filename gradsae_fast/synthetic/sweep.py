"""Curves of downstream distance along straight paths from one hidden state, at one token of one text.

Only the text's last token is changed, and it attends to what stands before it, which is computed once and kept in the
key-value cache. So a step of a path costs one token, from the site upward; steps of several paths share a pass.

Letters: K points of a pass, P paths, S points of a path (step 0 changes nothing), X points of all paths, D width, V
vocabulary.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.ablate import ScoredWindow, starting_at
from gradsae_fast.errors import ScoreError
from gradsae_fast.model.head import head_logits
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.patching import output_hook
from gradsae_fast.records import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Path:
    """A straight path: the activation where it starts, and where it leads."""

    start_D: Tensor
    target_D: Tensor

    @property
    def length(self) -> float:
        """Euclidean distance from start to target."""
        return float((self.target_D - self.start_D).float().norm())

    def points(self, step: float, num_steps: int) -> Tensor:
        """start + step · n · direction, n = 0 … num_steps [S, D], float32; the direction has length 1.

        ScoreError where start and target are one state, or not finite: no direction leads from one to the other.
        """
        direction_D = (self.target_D - self.start_D).float()
        if not 0 < self.length < float("inf"):
            raise ScoreError(f"a path has length {self.length}; expected two different finite states.")
        n_S1 = torch.arange(num_steps + 1, device=direction_D.device)[:, None]
        return self.start_D.float() + step * n_S1 * direction_D / self.length


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """Distances of every step from step 0 of its path, float64 [P, S]."""

    distance_PS: Array  # Euclidean, of the last layer's hidden state
    divergence_PS: Array  # KL(step 0 ‖ step n) of the next token's distribution [nats]


def sweep(
    lm: LanguageModel,
    scored: ScoredWindow,
    paths: Sequence[Path],
    *,
    step: float,
    num_steps: int,
    steps_per_pass: int = 256,
) -> Curves:
    """Move the hidden state of a window's last token along each path. The window has at least two tokens."""
    size = num_steps + 1
    points_XD = torch.cat([path.points(step, num_steps) for path in paths]).to(lm.dtype)
    last = dataclasses.replace(scored, start_TD=None if scored.start_TD is None else scored.start_TD[-1:])
    ids_T = torch.from_numpy(scored.window.token_ids.astype(np.int64)).to(lm.device)
    hidden: list[Tensor] = []
    divergence: list[Tensor] = []
    starts: list[Tensor] = []  # log-probabilities of each path's step 0, which is read before its others
    with torch.no_grad():
        before = lm.body(input_ids=ids_T[None, :-1], use_cache=True).past_key_values
        for number_K in torch.arange(len(points_XD), device=lm.device).split(steps_per_pass):
            hidden_KD, log_prob_KV = _read(lm, last, before, ids_T[-1:], points_XD[number_K])
            starts += log_prob_KV[number_K % size == 0]
            start_KV = torch.stack(starts)[number_K // size]
            divergence.append((start_KV.exp() * (start_KV - log_prob_KV)).double().sum(-1))
            hidden.append(hidden_KD)
    hidden_PSD = torch.cat(hidden).view(len(paths), size, -1)
    return Curves(
        distance_PS=(hidden_PSD - hidden_PSD[:, :1]).double().norm(dim=-1).cpu().numpy(),
        divergence_PS=torch.cat(divergence).view(len(paths), size).cpu().numpy(),
    )


def _read(lm: LanguageModel, last: ScoredWindow, before: Any, id_1: Tensor, points_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The last layer's output [K, D] and log-probabilities [K, V], float32, of one pass."""
    cache = copy.deepcopy(before)
    for layer in cache.layers[last.sited.site.start + 1 :]:  # the layers below do not run
        layer.batch_repeat_interleave(len(points_KD))
    found: list[Tensor] = []
    with output_hook(lm.layers[-1], found.append), starting_at(lm, last, points_KD[:, None]):
        output = lm.body(input_ids=id_1.expand(len(points_KD), 1), past_key_values=cache, use_cache=True)
    logits_KV = head_logits(lm.model, lm.body_path, output, output[0][:, 0])
    return found[0][:, 0].float(), logits_KV.float().log_softmax(-1)
