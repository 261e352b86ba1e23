"""Forward and backward through a frozen model: hidden states and gradients at the sites, and nothing else.

Error term kept (`splice` is None): the hidden state at the lowest site is replaced by a detached copy that requires
grad, so no graph exists below it; one forward and one backward serve all sites.

Spliced: `splice` says what replaces the hidden state, and the gradient is taken there. Each site is spliced alone,
because splicing several at once is another model. With several sites the network below the highest one runs once,
without a graph, and each spliced run starts from its site's hidden state.

Along a path: the gradient is the mean over a straight line of hidden states that ends where the network is scored; it
makes integrated gradients (Sundararajan et al., arXiv 1703.01365) of influences. The points are those of Gauss and
Legendre: hidden states are short at a path's beginning, where norm layers bend it more than evenly spaced points see.

The network always gets a copy of what is kept: some architectures add to a module's output in place.

Letters: B windows, T positions (padded), R real positions of a batch, D width (of all written sites together).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import ConfigError, ModelError
from gradsae_fast.method import path_points
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective, objective_gradient, objective_values, predicted_tokens
from gradsae_fast.model.patching import forward_replaced, output_hook
from gradsae_fast.model.sites import Site, Wiring
from gradsae_fast.model.states import real_rows, run_body, side_by_side, take_rows
from gradsae_fast.records import Array, Batch
from gradsae_fast.stages import span

Splice = Callable[[str, Tensor, Tensor, float], Tensor]
"""(path of the wiring, what is read [R, D], what is written [R, D], share) -> what the network sees instead [R, D].

Share 1 is what is scored; 0 is where a path begins, without the latents that it switches on.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capture:
    """One SAE's sites on one batch, at the R real positions, window after window."""

    read_RD: Tensor  # what the encoder reads, as the model computed it
    written_RD: Tensor  # what the decoder stands for, before any splice; `read_RD` itself but for transcoders
    grads: Mapping[str, Tensor]  # objective -> [R, D], of what is written
    values: Mapping[str, Array]  # objective -> float64 [B], of the run in which the gradient was taken
    base_values: Mapping[str, Array] | None = None  # the same at the other end of a path; None without one


def capture(
    lm: LanguageModel,
    batch: Batch,
    wirings: Sequence[Wiring],
    objectives: Sequence[Objective],
    *,
    splice: Splice | None = None,
    path_steps: int = 0,
    chunk: int = 512,
) -> dict[str, Capture]:
    """Hidden states and gradients of every objective for every SAE; keys are the wirings' paths.

    `path_steps` points of a path make as many runs, and two without a gradient; 0 is the gradient at its end alone.
    ModelError where a wiring reads what is computed only after it is written.
    """
    run = _Run(lm=lm, batch=batch, objectives=tuple(objectives), chunk=chunk)
    if splice is None:
        return run.error_term_kept(wirings)
    if len(wirings) == 1 and not path_steps:
        return {wirings[0].path: run.spliced(wirings[0], splice)}
    starts = run.prefix(wirings)
    captures = {}
    for wiring in wirings:
        with run.starting_from(wiring, starts[wiring.path]):
            captures[wiring.path] = run.along_path(wiring, splice, path_steps)
    return captures


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """One batch through one model."""

    lm: LanguageModel
    batch: Batch
    objectives: tuple[Objective, ...]
    chunk: int

    def forward(self) -> Any:
        """The body's output on the batch."""
        return run_body(self.lm, self.batch)

    def error_term_kept(self, wirings: Sequence[Wiring]) -> dict[str, Capture]:
        written = dict.fromkeys(site for wiring in wirings for site in wiring.writes)
        read = dict.fromkeys(wiring.reads for wiring in wirings if wiring.reads not in written)
        found: dict[Site, Tensor] = {}  # in the order in which the model comes to them

        def keep(site: Site, hidden_BTD: Tensor) -> None:
            found[site] = hidden_BTD.detach().clone()

        def watch(site: Site, hidden_BTD: Tensor) -> Tensor:
            found[site] = hidden_BTD if hidden_BTD.requires_grad else hidden_BTD.detach().requires_grad_()
            return found[site].clone()

        with ExitStack() as stack, torch.enable_grad():
            for site in read:
                stack.enter_context(site.hook(self.lm.model, partial(keep, site)))
            for site in written:
                stack.enter_context(site.hook(self.lm.model, partial(watch, site)))
            output = self.forward()
        order = list(found)
        for wiring in wirings:
            if order.index(wiring.reads) > order.index(wiring.writes[0]):
                raise _reads_later(wiring)
        rows_R = real_rows(self.batch, self.lm.device)
        grads, values = self._backward(output, {site: found[site] for site in written}, rows_R)
        rows = {site: take_rows(hidden_BTD.detach(), rows_R) for site, hidden_BTD in found.items()}
        return {
            wiring.path: Capture(
                read_RD=rows[wiring.reads],
                written_RD=side_by_side([rows[site] for site in wiring.writes]),
                grads={name: side_by_side([grads[site][name] for site in wiring.writes]) for name in values},
                values=values,
            )
            for wiring in wirings
        }

    def spliced(self, wiring: Wiring, splice: Splice) -> Capture:
        """One site that an SAE writes, replaced."""
        run = self.replaced(wiring, splice)
        grads, values = self._backward(run.output, {wiring.writes[0]: run.leaf_BTD}, run.rows_R)
        return Capture(read_RD=run.read_RD, written_RD=run.written_RD, grads=grads[wiring.writes[0]], values=values)

    def along_path(self, wiring: Wiring, splice: Splice, steps: int) -> Capture:
        """The end of a path, with the gradient's mean over it; the end alone where there are no steps.

        `top-token` objectives are about the token that the path's end predicts, at all its points.
        """
        if not steps:
            return self.spliced(wiring, splice)
        end = self.replaced(wiring, splice, gradient=False)
        held = {o.name: predicted_tokens(self.lm, o, self.batch, end.output, chunk=self.chunk) for o in self.objectives}
        base = self.replaced(wiring, splice, share=0.0, gradient=False)
        site, grads = wiring.writes[0], dict[str, Tensor]()
        for share, weight in zip(*path_points(steps), strict=True):
            point = self.replaced(wiring, splice, share=share)
            at_leaf, _ = self._backward(point.output, {site: point.leaf_BTD}, point.rows_R, held)
            for name, grad_RD in at_leaf[site].items():
                grads[name] = grads.get(name, 0.0) + weight * grad_RD.float()
        return Capture(
            read_RD=end.read_RD,
            written_RD=end.written_RD,
            grads=grads,
            values=self._values(end.output, held),
            base_values=self._values(base.output, held),
        )

    def replaced(self, wiring: Wiring, splice: Splice, *, share: float = 1.0, gradient: bool = True) -> "_Replaced":
        """Forward with what an SAE writes replaced; without `gradient` no graph is kept."""
        if wiring.is_cross_layer:
            raise ConfigError(
                f"the cross-layer transcoder of {wiring.path} writes {len(wiring.writes)} sites together with those of "
                "other layers, so its reconstruction cannot take their place. Keep the error term: "
                "--preset attribution-patching, without path_steps."
            )
        rows_R = real_rows(self.batch, self.lm.device)
        site = wiring.writes[0]
        read: list[Tensor] = []
        found: list[Tensor] = []

        def keep(hidden_BTD: Tensor) -> None:
            read.append(take_rows(hidden_BTD.detach(), rows_R))

        def change(hidden_BTD: Tensor) -> Tensor:
            written_RD = take_rows(hidden_BTD.detach(), rows_R)
            if wiring.reads == site:
                read.append(written_RD)
            if not read:
                raise _reads_later(wiring)
            spliced_BTD = hidden_BTD.detach().clone()
            replacement_RD = splice(wiring.path, read[0], written_RD, share)
            spliced_BTD.flatten(0, 1)[rows_R.to(hidden_BTD.device)] = replacement_RD.to(hidden_BTD)
            found.extend((written_RD, spliced_BTD.requires_grad_()))
            return spliced_BTD.clone()

        with ExitStack() as stack, torch.set_grad_enabled(gradient):
            if wiring.reads != site:
                stack.enter_context(wiring.reads.hook(self.lm.model, keep))
            stack.enter_context(site.hook(self.lm.model, change))
            output = self.forward()
        return _Replaced(output=output, rows_R=rows_R, read_RD=read[0], written_RD=found[0], leaf_BTD=found[1])

    def prefix(self, wirings: Sequence[Wiring]) -> dict[str, Tensor | None]:
        """The layer output from which each SAE's spliced run starts; None where it lies inside layer 0."""
        saved: dict[int, Tensor] = {}
        top = max(0, *(wiring.start for wiring in wirings))

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
        return {wiring.path: saved.get(wiring.start) for wiring in wirings}

    @contextmanager
    def starting_from(self, wiring: Wiring, hidden_BTD: Tensor | None) -> Iterator[None]:
        """Skip the layers up to the SAE's start: each puts out the saved hidden state at once."""
        with ExitStack() as stack:
            for layer in self.lm.layers[: wiring.start + 1]:
                stack.enter_context(forward_replaced(layer, lambda *_args, **_kwargs: self._wrap(hidden_BTD)))
            yield

    def _wrap(self, hidden_BTD: Tensor | None) -> Any:
        """A hidden state as a decoder layer of this architecture puts it out."""
        copy_BTD = None if hidden_BTD is None else hidden_BTD.clone()
        return (copy_BTD,) if self.lm.layers_give_tuples else copy_BTD

    def _backward(
        self,
        output: Any,
        leaves: Mapping[Site, Tensor],
        rows_R: Tensor,
        held: Mapping[str, Array | None] | None = None,
    ) -> tuple[dict[Site, dict[str, Tensor]], dict[str, Array]]:
        """Gradient of every objective at every leaf, real rows only, and the objectives' values."""
        grads: dict[Site, dict[str, Tensor]] = {site: {} for site in leaves}
        values: dict[str, Array] = {}
        for objective in self.objectives:
            top_tokens = (held or {}).get(objective.name)
            gradient = objective_gradient(
                self.lm, objective, self.batch, output, chunk=self.chunk, top_tokens=top_tokens
            )
            values[objective.name] = gradient.values_B
            with span("backward"):
                at_leaves = torch.autograd.grad(
                    output[0],
                    list(leaves.values()),
                    gradient.grad_BTD,
                    retain_graph=objective is not self.objectives[-1],
                )
            for site, grad_BTD in zip(leaves, at_leaves, strict=True):
                grads[site][objective.name] = take_rows(grad_BTD, rows_R)
        return grads, values

    def _values(self, output: Any, held: Mapping[str, Array | None]) -> dict[str, Array]:
        """The objectives' values alone."""
        return {
            o.name: objective_values(self.lm, o, self.batch, output, chunk=self.chunk, top_tokens=held[o.name])
            for o in self.objectives
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Replaced:
    """A forward pass that saw something else at a site."""

    output: Any  # the body's
    rows_R: Tensor  # real rows of the flattened batch
    read_RD: Tensor
    written_RD: Tensor
    leaf_BTD: Tensor  # what was seen at the site; the gradient is taken there


def _reads_later(wiring: Wiring) -> ModelError:
    return ModelError(
        f"the SAE of {wiring.path} reads {wiring.reads.path}, which is computed after it; expected a site below the "
        "one that is written. Give it with --reads."
    )
