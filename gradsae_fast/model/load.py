"""Load any causal language model of transformers, frozen, with everything that the rest of the house asks about it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradsae_fast.config import ModelConfig
from gradsae_fast.errors import ConfigError, ModelError
from gradsae_fast.model.head import check_head
from gradsae_fast.model.sites import Site, find_layers, resolve_site

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# What transformers raises for folders that are missing, truncated, contradictory or of another kind.
_LOADING_ERRORS = (
    ImportError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageModel:
    """A frozen causal LM, its tokenizer, and the paths of its body and of its decoder layers."""

    model: Any
    tokenizer: Any
    source: str
    digest: str
    body_path: str
    layers_path: str
    layers_give_tuples: bool  # some architectures wrap a layer's output in a tuple

    @property
    def body(self) -> nn.Module:
        """Embedding, decoder layers and final norm: everything below the head."""
        return self.model.get_submodule(self.body_path)

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.model.get_submodule(self.layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def device(self) -> torch.device:
        """Where token ids go in, and where SAEs are; of a model that is spread over several, the first."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    @property
    def max_context(self) -> int | None:
        """Positions that the model was built for, where its configuration says."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def site(self, spelling: str) -> Site:
        """Resolve a site in any of its spellings."""
        return resolve_site(self.model, self.layers_path, spelling)


def load_model(config: ModelConfig) -> LanguageModel:
    """Load and freeze a model; ModelError for what is missing, truncated, incomplete or not finite."""
    _check_source(config.path)
    if config.revision is not None and Path(config.path).is_dir():
        raise ModelError(f"revision {config.revision!r} has no effect on the folder {config.path!r}. Leave it out.")
    device = _choose_device(config.device)
    dtype = _choose_dtype(config.dtype, device)
    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    spread = _spread(config)
    try:
        # Said, not left out: else transformers asks at a terminal whether to run a model's own code.
        source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(config.path, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.path, dtype=dtype, output_loading_info=True, **source, **attention, **spread
        )
    except _LOADING_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{config.path!r} is a model with Python code of its own, and none is run from a model's folder. "
                "Expected an architecture that transformers itself has: try a newer release of transformers, or a "
                "converted checkpoint of the model."
            ) from error
        chosen = f" with attention {config.attention!r}" if attention else ""
        chosen += "" if Path(config.path).exists() else ", which is no local path, so that the hub was asked"
        raise ModelError(
            f"cannot load a causal language model from {config.path!r}{chosen}: {_first_line(error)} "
            "Expected a transformers folder (config.json, model.safetensors, tokenizer.json) or a reachable hub id."
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(
            f"{config.path!r} lacks {len(info['missing_keys'])} weights ({names}, ...), which would be random. Get the "
            "complete checkpoint of this architecture."
        )
    if spread:
        _check_spread(model, config)
    else:
        model.to(device)
    return prepare_model(model, tokenizer, source=config.path, digest=_digest(config.path, model.config))


def prepare_model(model: Any, tokenizer: Any, *, source: str, digest: str) -> LanguageModel:
    """Freeze a model that is already in memory, find its body and layers, and check its head and weights."""
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"{source!r}: weight {name} contains NaN or Inf. Get an intact checkpoint, or load it in float32."
            )
    body = model.get_decoder()
    body_path = next((path for path, module in model.named_modules() if module is body and path), None)
    if body_path is None:
        raise ModelError(
            f"{type(model).__name__} has no separate body (get_decoder). This architecture is not supported."
        )
    check_head(model, body, body_path)
    num_layers = model.config.get_text_config().num_hidden_layers
    layers_path = f"{body_path}.{find_layers(body, num_layers)}"
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        source=source,
        digest=digest,
        body_path=body_path,
        layers_path=layers_path,
        layers_give_tuples=_gives_tuple(body, model.get_submodule(f"{layers_path}.0")),
    )


def _gives_tuple(body: nn.Module, layer: nn.Module) -> bool:
    outputs: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        with torch.no_grad():
            body(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(body.parameters()).device), use_cache=False)
    finally:
        handle.remove()
    return isinstance(outputs[0], tuple)


def _check_source(source: str) -> None:
    """Refuse a path where nothing is, without asking the hub, whose answer would be about the spelling of its ids."""
    if not Path(source).exists() and _HUB_ID.fullmatch(source) is None:
        raise ModelError(
            f"there is no local path {source!r}, and it is no hub id ('org/model'); expected a transformers folder "
            "(config.json, model.safetensors, tokenizer.json) or a hub id. Check --model."
        )


def _choose_device(name: str) -> torch.device:
    """The device that is meant, tried with one number."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {name!r} cannot be used: {_first_line(error)} Use --device cpu or auto.") from error


def _spread(config: ModelConfig) -> dict[str, str]:
    """How accelerate is to spread the model's layers over GPUs; nothing for a model that is whole on one device."""
    if config.device_map is None:
        return {}
    if config.device not in ("auto", "cuda"):
        raise ConfigError(
            f"device_map = {config.device_map!r} spreads a model over all GPUs that a process sees, so device = "
            f"{config.device!r} contradicts it. Leave one of them out."
        )
    return {"device_map": config.device_map}


def _check_spread(model: nn.Module, config: ModelConfig) -> None:
    """Refuse a model of which parts were put where they would have to be fetched from for every batch."""
    kinds = sorted({parameter.device.type for parameter in model.parameters()})
    places = " and ".join("disk" if kind == "meta" else kind for kind in kinds)
    if len(kinds) > 1 or kinds == ["meta"]:
        raise ModelError(
            f"{config.path!r} does not fit into the GPUs that this process sees: device_map = {config.device_map!r} "
            f"left parts of it on {places}. Give a worker more GPUs, or load it in a smaller dtype."
        )


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _digest(path: str, config: Any) -> str:
    """What tells two checkpoints apart: file contents of a folder, resolved commit of a hub id."""
    folder = Path(path)
    if not folder.is_dir():
        return f"commit:{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".") + "."
