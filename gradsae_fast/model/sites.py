"""Sites: the tensor in the model that an SAE reads or writes, in any of its spellings.

model.layers.12                 what the module puts out
model.layers.12.mlp.input       what the module takes in (its first argument)
model.layers.12.ln.stream       the residual stream that the module takes in: a change reaches all that follows
model.layers.12.ln.normalized   what a norm makes before its gain and bias; for reading only
blocks.12.hook_resid_post       TransformerLens; `_HOOKS` lists the others
(none given)                    what the SAE's metadata says

An SAE reads the site that it writes. A transcoder reads one and writes another, a cross-layer transcoder writes
several: that is its `Wiring`.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradsae_fast.errors import ModelError
from gradsae_fast.model.patching import HiddenMap, input_hook, output_hook

INPUT, STREAM, NORMALIZED = ".input", ".stream", ".normalized"
_HOOK = re.compile(r"^blocks\.(\d+)\.(.+)$")
_MLP_NAMES = ("mlp", "feed_forward", "ffn")
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
_ATTENTION_OUT_NAMES = ("o_proj", "c_proj", "out_proj", "dense")
# Where a block has both, the first is Gemma's norm before the MLP and the second normalises what attention puts out.
_MLP_NORM_NAMES = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
# Some blocks normalise what a branch puts out before it is added: there the SAE read the normalised one. The norm after
# attention bears the name of Llama's norm before the MLP, so it counts only beside a norm after the MLP.
_POST_NORMS = {
    "mlp": ("post_feedforward_layernorm", "post_mlp_layernorm"),
    "self_attn": ("post_self_attn_layernorm", "post_attention_layernorm"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What one module of one decoder layer puts out; takes in, where `path` ends in `.input`."""

    path: str
    layer: int
    is_layer: bool  # the output of the layer itself

    def hook(self, model: nn.Module, change: HiddenMap) -> AbstractContextManager[None]:
        """Call `change` on the tensor at this site; what it returns, unless None, takes its place."""
        if self.path.endswith(STREAM):
            layer_path = self.path[: self.path.index(f".{self.layer}.") + len(f".{self.layer}")]
            module = model.get_submodule(self.path.removesuffix(STREAM))
            return _stream_hook(module, model.get_submodule(layer_path), change)
        if self.path.endswith(NORMALIZED):
            return _normalized_hook(model.get_submodule(self.path.removesuffix(NORMALIZED)), change, self.path)
        if self.path.endswith(INPUT):
            return input_hook(model.get_submodule(self.path.removesuffix(INPUT)), change)
        return output_hook(model.get_submodule(self.path), change)

    @property
    def start(self) -> int:
        """The layer from whose output the network reaches this site: its own, or the one below its module; -1: none."""
        return self.layer if self.is_layer else self.layer - 1


@contextmanager
def _stream_hook(module: nn.Module, layer: nn.Module, change: HiddenMap) -> Iterator[None]:
    """Call `change` on the residual stream that `module` takes in; what takes its place is added to the layer too.

    The module is a branch of the stream: what it takes in goes past it as well, and comes out of the layer unchanged.
    """
    moved: list[Tensor] = []

    def enter(hidden_BTD: Tensor) -> Tensor | None:
        changed_BTD = change(hidden_BTD)
        if changed_BTD is not None:
            moved.append(changed_BTD - hidden_BTD)
        return changed_BTD

    with input_hook(module, enter), output_hook(layer, lambda out_BTD: out_BTD + moved.pop() if moved else None):
        yield


def _normalized_hook(norm: nn.Module, change: HiddenMap, path: str) -> AbstractContextManager[None]:
    """Call `change` on what a norm makes of its input before its own gain and bias. Nothing can take its place."""
    bare = without_gain(norm)

    def read(hidden_BTD: Tensor) -> None:
        if change(bare(hidden_BTD)) is not None:
            raise ModelError(f"{path} lies inside a module, where nothing can be written; expected a module's output.")

    return input_hook(norm, read)


def without_gain(norm: nn.Module) -> nn.Module:
    """A copy of a norm that multiplies by 1 and adds nothing, whichever way it writes its gain (w, or 1 + w)."""
    bare = copy.deepcopy(norm)
    bare._forward_hooks.clear()
    bare._forward_pre_hooks.clear()
    parameters = dict(bare.named_parameters())
    if not parameters:  # OLMo's norm has no gain
        return bare
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        weight = parameters["weight"]
        if not bare(torch.arange(1.0, 1.0 + len(weight), dtype=weight.dtype, device=weight.device)).any():
            weight.fill_(1.0)
    return bare


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What an SAE's encoder reads, and what its decoder writes: one site, or several of a cross-layer transcoder."""

    reads: Site
    writes: tuple[Site, ...]
    is_cross_layer: bool = False  # what it writes is added to what the transcoders of other layers write there

    @classmethod
    def at(cls, site: Site) -> "Wiring":
        """That of an SAE, which reads the site that it writes."""
        return cls(reads=site, writes=(site,))

    @property
    def path(self) -> str:
        """The name that scores are kept under: the (first) written site."""
        return self.writes[0].path

    @property
    def is_transcoder(self) -> bool:
        """Whether another site is read than is written."""
        return self.writes != (self.reads,)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that it touches, each once."""
        return tuple(dict.fromkeys((self.reads, *self.writes)))

    @property
    def start(self) -> int:
        """The layer from whose output the network reaches all its sites."""
        return min(site.start for site in self.sites)


def find_layers(body: nn.Module, num_layers: int) -> str:
    """Path, inside the body, of the list of decoder layers."""
    for path, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return path
    raise ModelError(
        f"{type(body).__name__} has no list of {num_layers} decoder layers. This architecture is not supported."
    )


def resolve_site(model: nn.Module, layers_path: str, spelling: str) -> Site:
    """The site that `spelling` names; ModelError with the possible spellings where there is none."""
    layers = model.get_submodule(layers_path)
    assert isinstance(layers, nn.ModuleList)
    prefix, _, name = layers_path.rpartition(".")
    # Some formats leave out the model's own part of the path: "layers.3.mlp" for "model.layers.3.mlp".
    full = f"{prefix}.{spelling}" if prefix and spelling.startswith(f"{name}.") else spelling
    path = _hook_to_path(layers, layers_path, spelling) or full.removesuffix(".output")
    match = re.fullmatch(rf"{re.escape(layers_path)}\.(\d+)(\..+)?", path)
    module = path.removesuffix(INPUT).removesuffix(STREAM).removesuffix(NORMALIZED)
    if match is None or module not in {name for name, _ in model.named_modules()}:
        raise ModelError(
            f"no site {spelling!r} in {type(model).__name__}; expected {layers_path}.L, a module below it (with "
            f"{INPUT} for what it takes in), or blocks.L.hook_resid_post, with L from 0 to {len(layers) - 1}. Give it "
            "with --site."
        )
    layer = int(match[1])
    if match[2] == INPUT:  # of a layer: what the layer below puts out
        return _residual(layers_path, layer - 1, spelling)
    return Site(path=path, layer=layer, is_layer=match[2] is None)


def _residual(layers_path: str, layer: int, spelling: str) -> Site:
    """The output of a layer, counted from 0."""
    if layer < 0:
        raise ModelError(f"{spelling} is the embedding, which no layer puts out; expected layer 1 or above.")
    return Site(path=f"{layers_path}.{layer}", layer=layer, is_layer=True)


def _hook_to_path(layers: nn.ModuleList, layers_path: str, spelling: str) -> str | None:
    """Module path of a TransformerLens hook name; None where `spelling` is not one."""
    match = _HOOK.match(spelling)
    if match is None:
        return None
    layer, hook = int(match[1]), match[2]
    if layer >= len(layers):
        return None
    block, block_path = layers[layer], f"{layers_path}.{layer}"
    match hook:
        case "hook_resid_post":
            return block_path
        case "hook_resid_pre":
            return block_path + INPUT
        case "hook_mlp_out":
            return f"{block_path}.{_branch_end(block, _MLP_NAMES, spelling, block_path)}"
        case "hook_attn_out":
            return f"{block_path}.{_branch_end(block, _ATTENTION_NAMES, spelling, block_path)}"
        case "hook_resid_mid":
            return f"{block_path}.{_child(block, _mlp_entries(block), spelling, block_path)}{STREAM}"
        case "hook_mlp_in":
            return f"{block_path}.{_child(block, _mlp_entries(block), spelling, block_path)}{INPUT}"
        case "ln2.hook_normalized":
            names = _POST_NORMS["mlp"] if _is_post_norm(block) else _MLP_NORM_NAMES
            return f"{block_path}.{_child(block, names, spelling, block_path)}{NORMALIZED}"
        case "mlp.hook_out":
            return f"{block_path}.{_child(block, _MLP_NAMES, spelling, block_path)}"
        case "mlp.hook_in":
            return f"{block_path}.{_child(block, _MLP_NAMES, spelling, block_path)}{INPUT}"
        case "attn.hook_z":
            name = _child(block, _ATTENTION_NAMES, spelling, block_path)
            path = f"{block_path}.{name}"
            return f"{path}.{_child(block.get_submodule(name), _ATTENTION_OUT_NAMES, spelling, path)}{INPUT}"
    return None


def _child(module: nn.Module, names: tuple[str, ...], spelling: str, path: str) -> str:
    """The first of `names` that `module`, which lies at `path`, has as a child."""
    children = [name for name, _ in module.named_children()]
    found = next((name for name in names if name in children), None)
    if found is None:
        raise ModelError(
            f"{spelling!r}: {type(module).__name__} has no {' or '.join(names)}; it has {', '.join(children)}. Give "
            f"the module's own path with --site, such as {path}.{next(iter(children), '')}."
        )
    return found


def _is_post_norm(block: nn.Module) -> bool:
    """Whether the MLP takes in the residual stream itself and is normalised only behind (OLMo 2, Exaone 4)."""
    children = dict(block.named_children())
    return any(name in children for name in _POST_NORMS["mlp"]) and not any(
        name in children for name in ("pre_feedforward_layernorm", "input_layernorm")
    )


def _mlp_entries(block: nn.Module) -> tuple[str, ...]:
    """Names of the module through which the residual stream goes into the MLP."""
    return _MLP_NAMES if _is_post_norm(block) else _MLP_NORM_NAMES


def _branch_end(block: nn.Module, names: tuple[str, ...], spelling: str, path: str) -> str:
    """The module whose output is added to the residual stream: the branch itself, or the norm behind it."""
    name = _child(block, names, spelling, path)
    if getattr(block, "residual_multiplier", 1.0) != 1.0:
        raise ModelError(
            f"{spelling!r}: {type(block).__name__} adds {block.residual_multiplier} times what {name} puts out, and no "
            f"module puts that out; expected a layer's output, or {path}.{name} for what is not multiplied yet."
        )
    children = dict(block.named_children())
    if not any(norm in children for norm in _POST_NORMS["mlp"]):
        return name
    return next((norm for norm in _POST_NORMS.get(name, ()) if norm in children), name)
