"""Sites: the module whose output an SAE reads, in any of its three spellings.

model.layers.12                 the module's own path
blocks.12.hook_resid_post       TransformerLens: also hook_mlp_out, hook_attn_out and hook_resid_pre
(none given)                    what the SAE's metadata says
"""

import re
from dataclasses import dataclass

from torch import nn

from gradsae_fast.errors import ModelError

_HOOK = re.compile(r"^blocks\.(\d+)\.(hook_resid_pre|hook_resid_post|hook_mlp_out|hook_attn_out)$")
_MLP_NAMES = ("mlp", "feed_forward", "ffn")
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
# Gemma 2 and 3 normalise a block's output once more before it is added: there the SAE read the normalised one.
_POST_NORM = {"mlp": "post_feedforward_layernorm", "self_attn": "post_attention_layernorm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One module of one decoder layer: `path` in the model, index of the layer, and whether it is the layer itself."""

    path: str
    layer: int
    is_layer: bool


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
    path = _hook_to_path(layers, layers_path, spelling) or spelling.removesuffix(".output")
    match = re.fullmatch(rf"{re.escape(layers_path)}\.(\d+)(\..+)?", path)
    if match is None or path not in {name for name, _ in model.named_modules()}:
        raise ModelError(
            f"no site {spelling!r} in {type(model).__name__}; expected {layers_path}.L, a module below it, or "
            f"blocks.L.hook_resid_post, with L from 0 to {len(layers) - 1}. Give it with --site."
        )
    return Site(path=path, layer=int(match[1]), is_layer=match[2] is None)


def _hook_to_path(layers: nn.ModuleList, layers_path: str, spelling: str) -> str | None:
    """Module path of a TransformerLens hook name; None where `spelling` is not one."""
    match = _HOOK.match(spelling)
    if match is None:
        return None
    layer, hook = int(match[1]), match[2]
    if hook == "hook_resid_pre":
        if layer == 0:
            raise ModelError(
                "blocks.0.hook_resid_pre is the embedding, which no layer puts out; expected layer 1 or above."
            )
        return f"{layers_path}.{layer - 1}"
    if hook == "hook_resid_post" or layer >= len(layers):
        return f"{layers_path}.{layer}"
    names = _MLP_NAMES if hook == "hook_mlp_out" else _ATTENTION_NAMES
    children = dict(layers[layer].named_children())
    name = next((name for name in names if name in children), None)
    if name is None:
        raise ModelError(
            f"{spelling!r}: {type(layers[layer]).__name__} has no {' or '.join(names)}; it has {', '.join(children)}. "
            f"Give the module's own path with --site, such as {layers_path}.{layer}.{next(iter(children), '')}."
        )
    post_norm = _POST_NORM.get(name)
    has_post_norm = post_norm in children and "pre_feedforward_layernorm" in children
    return f"{layers_path}.{layer}.{post_norm if has_post_norm else name}"
