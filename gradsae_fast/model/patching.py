"""Temporary changes to a module tree: hooks, substituted submodules, skipped layers. Each undoes itself.

Nothing here knows of SAEs or objectives; `sites`, `capture` and `head` are built from these.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

HiddenMap = Callable[[Tensor], Tensor | None]


def hidden_of(output: Any) -> Tensor:
    """The hidden state in a module's output, which is a tensor or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden_BTD: Tensor) -> Any:
    """`output` with its hidden state exchanged."""
    return (hidden_BTD, *output[1:]) if isinstance(output, tuple) else hidden_BTD


@contextmanager
def output_hook(module: nn.Module, change: HiddenMap) -> Iterator[None]:
    """Call `change` on the hidden state that `module` puts out; what it returns, unless None, takes its place."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed_BTD = change(hidden_of(output))
        return None if changed_BTD is None else with_hidden(output, changed_BTD)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_hook(module: nn.Module, change: HiddenMap) -> Iterator[None]:
    """Call `change` on the hidden state that `module` takes in; what it returns, unless None, takes its place.

    It is the module's first argument, or the first tensor among those given by name.
    """

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            changed_BTD = change(args[0])
            return None if changed_BTD is None else ((changed_BTD, *args[1:]), kwargs)
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        changed_BTD = change(kwargs[name])
        return None if changed_BTD is None else (args, {**kwargs, name: changed_BTD})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run `forward` in place of the module's own; hooks of the module still fire."""
    own = module.__dict__.get("forward")  # set by accelerate, on the modules of a model that is spread over devices
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def submodule_replaced(root: nn.Module, path: str, substitute: nn.Module) -> Iterator[None]:
    """Put `substitute` where `root` has its submodule `path`."""
    parent_path, _, name = path.rpartition(".")
    parent = root.get_submodule(parent_path)
    original = parent._modules[name]
    parent._modules[name] = substitute
    try:
        yield
    finally:
        parent._modules[name] = original
