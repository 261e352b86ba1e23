"""dictionary_learning (saprmarks): `ae.pt` beside `config.json`, the family named by `trainer.dict_class`.

    class                    input   stored     rule
    AutoEncoder              z-b     turned     relu; decoder rows brought to norm 1, as its own loader does by default
    AutoEncoderNew           z       turned     relu
    GatedAutoEncoder         z-b     turned     gate (x·w + gate_bias > 0) times relu(exp(r_mag) x·w + mag_bias)
    JumpReluAutoEncoder      z       straight   x·w > threshold
    AutoEncoderTopK          z-b     turned     relu, then the k largest of the token; its stored threshold is an option
                                                of the software's encode that is off, and is not used here either
    BatchTopKSAE             z-b     turned     one threshold for all latents, which stands for the batch-wide top-k
    MatryoshkaBatchTopKSAE   z-b     straight   the same, all groups in use

"turned" is what a linear layer stores, encoder.weight [C, D] and decoder.weight [D, C]; "straight" is W_enc [D, C] and
W_dec [C, D]: facts of the class. Saved biases are in the units of the model's hidden states, whatever training
normalised.

Source: dictionary.py and trainers/ of dictionary-learning 0.1.0. Shapes: D width of the site, C latents.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, SaeFacts, Threshold, TopK
from gradsae_fast.sae.fold import StoredSae, fold
from gradsae_fast.sae.formats.settings import check_k, read_json, read_object, read_optional, read_size
from gradsae_fast.sae.weights import check_keys, check_not_negative, check_tensors, digest_files, read_pickle

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES = (CONFIG, WEIGHTS)
LAYOUT = "dictionary_learning folder: ae.pt + config.json"
BY_HAND = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Which tensors a class stores under which names; `None` where it has none."""

    w_enc: str = "encoder.weight"
    w_dec: str = "decoder.weight"
    b_enc: str | None = "encoder.bias"
    b_dec: str
    per_latent: tuple[str, ...] = ()
    turned: bool = True
    subtract: bool = True
    unit_rows: bool = False


FAMILIES: Mapping[str, Family] = {
    "AutoEncoder": Family(b_dec="bias", unit_rows=True),
    "AutoEncoderNew": Family(b_dec="decoder.bias", subtract=False),
    "GatedAutoEncoder": Family(b_enc=None, b_dec="decoder_bias", per_latent=("r_mag", "gate_bias", "mag_bias")),
    "JumpReluAutoEncoder": Family(
        w_enc="W_enc",
        w_dec="W_dec",
        b_enc="b_enc",
        b_dec="b_dec",
        per_latent=("threshold",),
        turned=False,
        subtract=False,
    ),
    "AutoEncoderTopK": Family(b_dec="b_dec"),
    "BatchTopKSAE": Family(b_dec="b_dec"),
    "MatryoshkaBatchTopKSAE": Family(w_enc="W_enc", w_dec="W_dec", b_enc="b_enc", b_dec="b_dec", turned=False),
}
BUFFERS: Mapping[str, tuple[str, ...]] = {
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k", "threshold"),
    "MatryoshkaBatchTopKSAE": ("k", "threshold", "group_sizes"),
}
BATCH_WIDE = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def matches(path: Path) -> bool:
    """Whether `path` is a folder with both files, or one of them."""
    return (_folder(path) / WEIGHTS).is_file() and (_folder(path) / CONFIG).is_file()


def load(path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype) -> Sae:
    """The canonical SAE of a dictionary_learning folder. Raises SaeError on classes it does not know and bad files."""
    file, config_file = _folder(path) / WEIGHTS, _folder(path) / CONFIG
    config = read_json(config_file)
    trainer = read_object(config, "trainer", config_file)
    name = _dict_class(trainer, config_file)
    family = FAMILIES[name]
    d_in, c = read_size(trainer, "activation_dim", config_file), read_size(trainer, "dict_size", config_file)
    tensors, extras = _read(file, name, family, d_in, c)
    stored = StoredSae(
        w_enc_CD=tensors[family.w_enc] if family.turned else tensors[family.w_enc].T,
        w_dec_CD=tensors[family.w_dec].T if family.turned else tensors[family.w_dec],
        b_enc_C=None if family.b_enc is None else tensors[family.b_enc],
        b_dec_D=tensors[family.b_dec],
        rule=_rule(name, tensors, extras, trainer, c, file),
        subtract_b_dec=family.subtract,
        rescale_by_decoder_norm=family.unit_rows,
    )
    facts = SaeFacts(
        source=source,
        format="dictionary_learning",
        architecture=name,
        hook_name=_hook_name(trainer, config_file),
        model_name=read_optional(trainer, "lm_name", str, config_file),
        context_size=_context_size(config, config_file),
        published_l0=float(trainer["k"]) if name in BATCH_WIDE else None,
        digest=digest_files([config_file, file]),
        num_latents=c,
        d_in=d_in,
    )
    return fold(stored, facts=facts, device=device, dtype=dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.name in FILES else path


def _dict_class(trainer: Mapping[str, Any], file: Path) -> str:
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in FAMILIES:
        raise SaeError(f"trainer.dict_class in {file} is {name!r}; supported: {', '.join(FAMILIES)}")
    return name


def _read(file: Path, name: str, family: Family, d_in: int, c: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The checked weights, and the buffers of the top-k classes: k, threshold, group_sizes."""
    shapes: dict[str, tuple[int, ...]] = {
        family.w_enc: (c, d_in) if family.turned else (d_in, c),
        family.w_dec: (d_in, c) if family.turned else (c, d_in),
        family.b_dec: (d_in,),
        **{key: (c,) for key in (family.b_enc, *family.per_latent) if key is not None},
    }
    tensors = read_pickle(file)
    extras = {key: tensors.pop(key) for key in BUFFERS.get(name, ()) if key in tensors}
    check_keys(tensors, shapes, path=file, family=name)
    check_tensors(tensors, shapes, path=file)
    return tensors, extras


def _rule(
    name: str,
    tensors: Mapping[str, Tensor],
    extras: Mapping[str, Any],
    trainer: Mapping[str, Any],
    c: int,
    file: Path,
) -> Threshold | TopK:
    if name == "GatedAutoEncoder":
        scale_C = tensors["r_mag"].double().exp()
        return Threshold(threshold_C=-tensors["gate_bias"], scale_C=scale_C, offset_C=tensors["mag_bias"])
    if name == "JumpReluAutoEncoder":
        return Threshold(threshold_C=tensors["threshold"])
    if name == "AutoEncoderTopK":
        return TopK(k=_k(extras, trainer, c, file))
    if name in BATCH_WIDE:
        _k(extras, trainer, c, file)
        _check_groups(name, extras, c, file)
        return Threshold(threshold_C=_shared_threshold(extras, c, file))
    return Threshold(threshold_C=torch.zeros(c))


def _k(extras: Mapping[str, Any], trainer: Mapping[str, Any], c: int, file: Path) -> int:
    """k is stored twice, in the configuration and (since 2024) beside the weights; the two must agree."""
    k = check_k(trainer.get("k"), c, file.parent / CONFIG)
    stored = _values(extras, "k")
    if stored not in (None, [k]):
        raise SaeError(f"k in {file} is {stored}, but {CONFIG} beside it says {k}; they belong to two runs")
    return k


def _shared_threshold(extras: Mapping[str, Any], c: int, file: Path) -> Tensor:
    if "threshold" not in extras:
        raise SaeError(
            f"{file} stores no threshold, and a batch-wide top-k depends on the other tokens of a batch; expected the "
            "threshold that training tracks from its threshold_start_step on"
        )
    check_tensors(extras, {"threshold": ()}, path=file)
    threshold_C = extras["threshold"].expand(c)
    check_not_negative(threshold_C, path=file)
    return threshold_C


def _check_groups(name: str, extras: Mapping[str, Any], c: int, file: Path) -> None:
    if name != "MatryoshkaBatchTopKSAE":
        return
    sizes = _values(extras, "group_sizes")
    if sizes is None or sum(sizes) != c:
        raise SaeError(f"group_sizes in {file} is {sizes}, expected sizes that sum to {c}, the number of latents")


def _values(extras: Mapping[str, Any], key: str) -> list[int] | None:
    """The values of a stored buffer, which is a tensor of any shape; None where there is no such tensor."""
    buffer = extras.get(key)
    return buffer.flatten().tolist() if isinstance(buffer, Tensor) else None


def _hook_name(trainer: Mapping[str, Any], file: Path) -> str | None:
    """The site, where the module's name says that it is a layer's output; a layer's number alone does not."""
    submodule, layer = read_optional(trainer, "submodule_name", str, file), trainer.get("layer")
    named = submodule is not None and re.fullmatch(rf"resid_post(_layer_{layer})?", submodule)
    return f"blocks.{layer}.hook_resid_post" if named and isinstance(layer, int) else None


def _context_size(config: Mapping[str, Any], file: Path) -> int | None:
    return read_optional(read_optional(config, "buffer", dict, file) or {}, "ctx_len", int, file)
