"""Forward and backward through a frozen model: hidden states and gradients at the sites, and nothing else.

Error term kept (`splice` is None): the hidden state at the lowest site is replaced by a detached copy that requires
grad, so no graph exists below it; one forward and one backward serve all sites.

Spliced: `splice` says what replaces the hidden state, and the gradient is taken there. Each site is spliced alone,
because splicing several at once is another model. With several sites the network below the highest one runs once,
without a graph, and each spliced run starts from its site's hidden state.

The network always gets a copy of what is kept: some architectures add to a module's output in place.

Letters: B windows, T positions (padded), R real positions of a batch, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective, objective_gradient
from gradsae_fast.model.patching import forward_replaced, output_hook
from gradsae_fast.model.sites import Site
from gradsae_fast.records import Array, Batch

Splice = Callable[[str, Tensor], Tensor]
"""(site path, hidden states [R, D]) -> what the rest of the network sees instead [R, D]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capture:
    """One site on one batch, at the R real positions, window after window."""

    hidden_RD: Tensor  # as the model computed it, before any splice
    grads: Mapping[str, Tensor]  # objective -> [R, D]
    values: Mapping[str, Array]  # objective -> float64 [B], of the run in which the gradient was taken


def real_rows(batch: Batch, device: torch.device | str = "cpu") -> Tensor:
    """Rows of the flattened [B * T] batch that hold real tokens, window after window [R]."""
    width = batch.token_ids_BT.shape[1]
    rows = [np.arange(length) + index * width for index, length in enumerate(batch.lengths)]
    return torch.from_numpy(np.concatenate(rows)).to(device)


def capture(
    lm: LanguageModel,
    batch: Batch,
    sites: Sequence[Site],
    objectives: Sequence[Objective],
    *,
    splice: Splice | None = None,
    chunk: int = 512,
) -> dict[str, Capture]:
    """Hidden states and gradients of every objective at every site; keys are site paths."""
    run = _Run(lm=lm, batch=batch, objectives=tuple(objectives), chunk=chunk)
    if splice is None:
        return run.error_term_kept(sites)
    if len(sites) == 1:
        return {sites[0].path: run.spliced(sites[0], splice)}
    starts = run.prefix(sites)
    captures = {}
    for site in sites:
        with run.starting_from(site, starts[site.path]):
            captures[site.path] = run.spliced(site, splice)
    return captures


def hidden_states(lm: LanguageModel, batch: Batch, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Hidden states [R, D] of one plain forward pass, without a graph; keys are site paths."""
    rows_R = real_rows(batch, lm.device)
    found: dict[str, Tensor] = {}

    def keep(path: str, hidden_BTD: Tensor) -> None:
        found[path] = _take(hidden_BTD, rows_R)

    with ExitStack() as stack, torch.no_grad():
        for site in sites:
            stack.enter_context(output_hook(lm.model.get_submodule(site.path), partial(keep, site.path)))
        _Run(lm=lm, batch=batch, objectives=(), chunk=1).forward()
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """One batch through one model."""

    lm: LanguageModel
    batch: Batch
    objectives: tuple[Objective, ...]
    chunk: int

    def forward(self) -> Any:
        """The body's output on the batch. Padding is on the right of a causal model: no mask is needed."""
        ids_BT = torch.from_numpy(self.batch.token_ids_BT).to(self.lm.device)
        return self.lm.body(input_ids=ids_BT, use_cache=False)

    def error_term_kept(self, sites: Sequence[Site]) -> dict[str, Capture]:
        leaves: dict[str, Tensor] = {}

        def watch(path: str, hidden_BTD: Tensor) -> Tensor:
            leaves[path] = hidden_BTD if hidden_BTD.requires_grad else hidden_BTD.detach().requires_grad_()
            return leaves[path].clone()

        with ExitStack() as stack, torch.enable_grad():
            for site in sites:
                stack.enter_context(output_hook(self.lm.model.get_submodule(site.path), partial(watch, site.path)))
            output = self.forward()
        ordered = [leaves[site.path] for site in sites]
        rows_R = real_rows(self.batch, self.lm.device)
        grads, values = self._backward(output, ordered, rows_R)
        return {
            site.path: Capture(hidden_RD=_take(leaf.detach(), rows_R), grads=grads[index], values=values)
            for index, (site, leaf) in enumerate(zip(sites, ordered, strict=True))
        }

    def spliced(self, site: Site, splice: Splice) -> Capture:
        rows_R = real_rows(self.batch, self.lm.device)
        found: list[Tensor] = []

        def change(hidden_BTD: Tensor) -> Tensor:
            hidden_RD = _take(hidden_BTD.detach(), rows_R)
            spliced_BTD = hidden_BTD.detach().clone()
            spliced_BTD.flatten(0, 1)[rows_R] = splice(site.path, hidden_RD).to(hidden_BTD.dtype)
            found.extend((hidden_RD, spliced_BTD.requires_grad_()))
            return spliced_BTD.clone()

        with torch.enable_grad(), output_hook(self.lm.model.get_submodule(site.path), change):
            output = self.forward()
        hidden_RD, leaf_BTD = found
        grads, values = self._backward(output, [leaf_BTD], rows_R)
        return Capture(hidden_RD=hidden_RD, grads=grads[0], values=values)

    def prefix(self, sites: Sequence[Site]) -> dict[str, Tensor | None]:
        """The hidden state from which each site's spliced run starts: its own or its layer's input; None in layer 0."""
        saved: dict[int, Tensor] = {}
        top = max(site.layer for site in sites)

        def save(index: int, hidden_BTD: Tensor) -> None:
            saved[index] = hidden_BTD.clone()

        layers = self.lm.layers
        with ExitStack() as stack, torch.no_grad():
            for index in range(len(layers)):
                if index > top:
                    stack.enter_context(
                        forward_replaced(layers[index], lambda *_args, **_kwargs: self._wrap(saved[top]))
                    )
                else:
                    stack.enter_context(output_hook(layers[index], partial(save, index)))
            self.forward()
        return {site.path: saved.get(_start_layer(site)) for site in sites}

    @contextmanager
    def starting_from(self, site: Site, hidden_BTD: Tensor | None) -> Iterator[None]:
        """Skip the layers up to the site's start: each puts out the saved hidden state at once."""
        with ExitStack() as stack:
            for index in range(_start_layer(site) + 1):
                stack.enter_context(
                    forward_replaced(self.lm.layers[index], lambda *_args, **_kwargs: self._wrap(hidden_BTD))
                )
            yield

    def _wrap(self, hidden_BTD: Tensor | None) -> Any:
        """A hidden state as a decoder layer of this architecture puts it out."""
        copy_BTD = None if hidden_BTD is None else hidden_BTD.clone()
        return (copy_BTD,) if self.lm.layers_give_tuples else copy_BTD

    def _backward(
        self, output: Any, leaves: list[Tensor], rows_R: Tensor
    ) -> tuple[list[dict[str, Tensor]], dict[str, Array]]:
        """Gradient of every objective at every leaf, real rows only, and the objectives' values."""
        grads: list[dict[str, Tensor]] = [{} for _ in leaves]
        values: dict[str, Array] = {}
        for objective in self.objectives:
            gradient = objective_gradient(self.lm, objective, self.batch, output, chunk=self.chunk)
            values[objective.name] = gradient.values_B
            at_leaves = torch.autograd.grad(
                output[0], leaves, gradient.grad_BTD, retain_graph=objective is not self.objectives[-1]
            )
            for index, grad_BTD in enumerate(at_leaves):
                grads[index][objective.name] = _take(grad_BTD, rows_R)
        return grads, values


def _take(hidden_BTD: Tensor, rows_R: Tensor) -> Tensor:
    return hidden_BTD.flatten(0, 1)[rows_R]


def _start_layer(site: Site) -> int:
    """The layer whose output is enough to run on from: the site itself, or the layer below its module."""
    return site.layer if site.is_layer else site.layer - 1
