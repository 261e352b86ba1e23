"""The sub-network between two sites of one decoder layer, as a function of one token.

It is found by following tensors: the module that puts out what stands at the upper site, the module that puts out what
that one takes in, and so on down to the lower site. So it may be a gated MLP, a plain one, a mixture of experts, with
norms before and after it, and no architecture is named here. Four checks on a few tokens, before anything is computed:
another token's change does not reach the upper site, the token's own change does, the modules in a row give what the
model gave, and they can be differentiated for several vectors at a time.

Letters: N tokens, T positions of the probe, D width below, E width above.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from gradsae_fast.errors import ModelError
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.patching import HiddenMap, forward_replaced, hidden_of
from gradsae_fast.model.sites import Site

_PROBE_TOKENS = 8
# How far the row of modules may be from the model's own forward pass, relative to its largest number.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_NO_PART = "cannot be taken apart from its block, so there is no Jacobian of it. Expected another architecture."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenPath:
    """The function from one site to the other; made by `find_path`."""

    reads: Site
    writes: Site
    names: tuple[str, ...]  # of the modules, inside the model, in order
    modules: tuple[nn.Module, ...]
    dtype: torch.dtype  # of the model

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Hidden states at the upper site, float32, from those at the lower one; differentiable in both directions."""
        hidden_N1D = hidden_ND.to(self.dtype)[:, None]  # N sequences of one token: none can see another
        for module in self.modules:
            hidden_N1D = hidden_of(module(hidden_N1D))
        return hidden_N1D[:, 0].float()

    def pull(self, x_ND: Tensor) -> Callable[[Tensor], Tensor]:
        """The product of the transposed Jacobian at x with a cotangent, [N, E] -> [N, D]."""
        _, pull, *_ = vjp(self, x_ND)
        return lambda cotangent_NE: pull(cotangent_NE)[0]

    def push(self, x_ND: Tensor) -> Callable[[Tensor], Tensor]:
        """The product of the Jacobian at x with a tangent, [N, D] -> [N, E].

        It is the transpose of the transpose: `pull` is linear, so its own reverse pass is the forward product. Modules
        whose kernels know no forward derivative have this one, and it costs the same.
        """
        y_NE, pull, *_ = vjp(self, x_ND)
        _, push, *_ = vjp(lambda cotangent_NE: pull(cotangent_NE)[0], torch.zeros_like(y_NE))
        return lambda tangent_ND: push(tangent_ND)[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trace:
    """One forward pass of the probe: the tensors at both sites, and what each module took in and put out."""

    lower_1TD: Tensor
    upper_1TD: Tensor
    calls: tuple[tuple[str, nn.Module, Tensor, Tensor], ...]


def find_path(lm: LanguageModel, reads: Site, writes: Site) -> TokenPath:
    """The modules between two sites. ModelError where there is no such row, or where it mixes tokens."""
    trace = _run(lm, reads, writes)
    if any(hidden.dim() != 3 for hidden in (trace.lower_1TD, trace.upper_1TD)):
        raise ModelError(
            f"{reads.path} and {writes.path} hold the tokens of all texts in one row ({tuple(trace.upper_1TD.shape)}; "
            f"expected texts x tokens x width): the MLP of this architecture {_NO_PART}"
        )
    _check_local(lm, trace, reads, writes)
    calls = _follow(trace, trace.upper_1TD)
    if not calls:
        raise ModelError(
            f"no plain row of modules leads from {reads.path} to {writes.path}: a sum such as the residual connection "
            "lies between, or both are one place. Give the input and the output of an MLP, or of the norms around it."
        )
    path = TokenPath(
        reads=reads,
        writes=writes,
        names=tuple(name for name, _ in calls),
        modules=tuple(module for _, module in calls),
        dtype=lm.dtype,
    )
    _check_equal(path, trace)
    _check_derivatives(path, trace)
    return path


@contextmanager
def nothing_above(lm: LanguageModel, layer: int) -> Iterator[None]:
    """Let the layers above `layer` pass on what they get."""

    def pass_on(hidden_BTD: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_BTD,) if lm.layers_give_tuples else hidden_BTD

    with ExitStack() as stack:
        for above in lm.layers[layer + 1 :]:
            stack.enter_context(forward_replaced(above, pass_on))
        yield


def _run(lm: LanguageModel, reads: Site, writes: Site, change: HiddenMap | None = None) -> _Trace:
    """The probe through the model; `change` replaces the hidden state at the lower site."""
    found: dict[str, Tensor] = {}
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def lower(hidden_1TD: Tensor) -> Tensor | None:
        found["lower"] = hidden_1TD
        return None if change is None else change(hidden_1TD)

    def upper(hidden_1TD: Tensor) -> None:
        found["upper"] = hidden_1TD

    with ExitStack() as stack, torch.no_grad(), nothing_above(lm, max(reads.layer, writes.layer)):
        stack.enter_context(_traced(lm, writes.layer, calls))
        stack.enter_context(reads.hook(lm.model, lower))
        stack.enter_context(writes.hook(lm.model, upper))
        lm.body(input_ids=_probe_ids(lm), use_cache=False)
    return _Trace(lower_1TD=found["lower"], upper_1TD=found["upper"], calls=tuple(calls))


def _probe_ids(lm: LanguageModel) -> Tensor:
    """The first token ids but that of padding, whose embedding may be all zeros [1, T]."""
    padding = lm.model.config.get_text_config().pad_token_id
    return torch.tensor([[n for n in range(_PROBE_TOKENS + 1) if n != padding][-_PROBE_TOKENS:]], device=lm.device)


@contextmanager
def _traced(lm: LanguageModel, layer: int, calls: list[tuple[str, nn.Module, Tensor, Tensor]]) -> Iterator[None]:
    """Note what every module of a layer takes in and puts out, where both are tensors."""
    prefix = f"{lm.layers_path}.{layer}"

    def note(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            taken = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            given = hidden_of(output)
            if taken is not None and isinstance(given, Tensor) and taken is not given:
                calls.append((name, module, taken, given))

        return module.register_forward_hook(hook, with_kwargs=True)

    handles = [
        note(f"{prefix}.{name}" if name else prefix, module) for name, module in lm.layers[layer].named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _follow(trace: _Trace, tensor_1TD: Tensor) -> list[tuple[str, nn.Module]]:
    """The modules that lead from the lower site to this tensor; empty where there are none.

    A module and its last part put out the same tensor: the largest that leads down to the lower site is taken.
    """
    for name, module, taken, given in reversed(trace.calls):  # what contains another ends after it
        if given is tensor_1TD:
            below = _follow(trace, taken)
            if below or taken is trace.lower_1TD:
                return [*below, (name, module)]
    return []


def _check_local(lm: LanguageModel, trace: _Trace, reads: Site, writes: Site) -> None:
    """Change the probe's first token at the lower site, and see at which tokens the upper site moves."""

    def change(hidden_1TD: Tensor) -> Tensor:
        changed_1TD = hidden_1TD.clone()
        changed_1TD[:, 0] = hidden_1TD[:, 0].flip(-1) * -2
        return changed_1TD

    moved_T = (_run(lm, reads, writes, change).upper_1TD - trace.upper_1TD)[0].abs().amax(-1)
    limit = _TOLERANCE[torch.float32] * trace.upper_1TD.abs().max()
    if (moved_T[1:] > limit).any():
        raise ModelError(
            f"between {reads.path} and {writes.path} tokens see each other: attention lies between. Expected two sites "
            "around an MLP of one layer, such as model.layers.L.mlp.input and model.layers.L.mlp."
        )
    if moved_T[0] <= limit:
        raise ModelError(
            f"{writes.path} does not depend on {reads.path} of the same token; expected the lower site first "
            "(--site-in), the upper one second (--site-out)."
        )


def _check_equal(path: TokenPath, trace: _Trace) -> None:
    try:
        with torch.no_grad():
            error = (path(trace.lower_1TD[0]) - trace.upper_1TD[0].float()).abs().max()
    except TypeError as problem:
        raise ModelError(
            f"{', '.join(path.names)} cannot run on one hidden state alone ({problem}): the MLP of this architecture "
            f"{_NO_PART}"
        ) from problem
    if not error <= _TOLERANCE[path.dtype] * trace.upper_1TD.abs().max():
        raise ModelError(
            f"the modules {', '.join(path.names)} alone do not give what the model has at {path.writes.path} (off by "
            f"{error.item():.3g}): the network between the sites takes in more than one token's hidden state."
        )


def _check_derivatives(path: TokenPath, trace: _Trace) -> None:
    """Push and pull a few vectors together, as `token_blocks` will."""
    lower_TD, upper_TE = trace.lower_1TD[0].float(), trace.upper_1TD[0].float()
    try:
        vmap(path.push(lower_TD))(lower_TD[None])
        vmap(path.pull(lower_TD))(upper_TE[None])
    except RuntimeError as problem:
        raise ModelError(
            f"{', '.join(path.names)} cannot be differentiated for several vectors at a time "
            f"({str(problem).splitlines()[0]}): the MLP of this architecture {_NO_PART}"
        ) from problem
