"""SAELens folders: `cfg.json` beside `sae_weights.safetensors`, and the writer of the same layout.

W_enc is [D, C] and W_dec is [C, D]: a fact of the format. BatchTopK and Matryoshka SAEs are saved as `jumprelu` with a
constant threshold. Of the input normalisations, `expected_average_only_in` and `covariance_whitening` are folded by
SAELens when training ends; only checkpoints of an unfinished run still name them, with the statistics in
`activation_scaler.json` and `activation_whitening.safetensors` beside the weights.

A matching pursuit SAE has W_dec alone, for both directions, and b_dec either in both or in neither: where
`apply_b_dec_to_input` is false, SAELens leaves b_dec out of the reconstruction too.

A temporal SAE has the tensors of its attention too (`saelens_temporal`). Where its weights are tied it has W_dec alone,
and b_dec in both directions or in neither, like matching pursuit.

A transcoder subtracts no b_dec, and its decoder may be of another width. Its skip connection adds z W_skipᵀ: W_skip is
stored [written width, read width]. `hook_name` of the metadata is what it reads, `hook_name_out` what it writes.

Shapes: D width that is read or written, C latents.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import InputNorm, Rule, Sae, SaeFacts, Threshold, TopK
from gradsae_fast.sae.fold import StoredSae, Whitening, fold
from gradsae_fast.sae.formats.saelens_config import KEYS, SaelensConfig, is_transcoder, read_config
from gradsae_fast.sae.formats.saelens_temporal import read_prediction, temporal_rule, temporal_shapes
from gradsae_fast.sae.formats.settings import read_json
from gradsae_fast.sae.weights import check_keys, check_not_negative, check_tensors, digest_files, read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
FILES = (CONFIG, WEIGHTS, SCALER, WHITENING)
LAYOUT = "SAELens folder: cfg.json + sae_weights.safetensors"
BY_HAND = ("norm_factor",)
LAYOUT_VERSION = "6.54.12"  # the SAELens release whose layout `save` writes
PER_TOKEN = {"layer_norm": InputNorm.LAYER_NORM, "constant_norm_rescale": InputNorm.CONSTANT_NORM}


def matches(path: Path) -> bool:
    """Whether `path` is a folder with SAELens weights, or one of the two files in it."""
    return (_folder(path) / WEIGHTS).is_file()


def load(
    path: Path, *, source: str, device: str | torch.device, dtype: torch.dtype, norm_factor: float | None = None
) -> Sae:
    """The canonical SAE of a SAELens folder. Raises SaeError on anything that is missing, unknown or contradictory.

    `norm_factor` is the scalar of `expected_average_only_in` where the folder does not store it.
    """
    folder = _folder(path)
    config = read_config(folder / CONFIG)
    norm = _normalisation(folder, config, norm_factor)
    tensors = _read_weights(folder / WEIGHTS, config)
    by_hand = "" if norm_factor is None else f"norm_factor={norm_factor!r}"
    digest = digest_files([folder / CONFIG, folder / WEIGHTS, *norm.files], extra=by_hand)
    stored = StoredSae(
        w_enc_CD=tensors["W_enc"].T if "W_enc" in tensors else tensors["W_dec"],
        w_dec_CD=tensors["W_dec"],
        b_enc_C=tensors.get("b_enc"),
        b_dec_D=tensors["b_dec"],
        rule=_rule(config, tensors, folder / WEIGHTS),
        subtract_b_dec=config.temporal is None and (config.apply_b_dec_to_input or config.pursuit is not None),
        input_norm=norm.input_norm,
        rescale_by_decoder_norm=config.rescale_acts_by_decoder_norm,
        norm_factor=norm.factor,
        whitening=norm.whitening,
        w_skip_DD=tensors["W_skip"].T if "W_skip" in tensors else None,
        prediction=None
        if config.temporal is None
        else read_prediction(config.temporal, tensors, subtract_b_dec=config.apply_b_dec_to_input),
    )
    return fold(stored, facts=_facts(config, source=source, digest=digest), device=device, dtype=dtype)


def save(path: Path, *, architecture: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write an SAE as a SAELens folder, and return the folder.

    `weights` are the tensors that `saelens_config.KEYS` lists for the architecture; `config` holds whatever else
    `cfg.json` should say (`metadata`, `k`, `apply_b_dec_to_input`, ...), over the defaults of the format. Raises
    SaeError where the weights are not a whole SAE of that architecture.
    """
    if architecture not in KEYS:
        raise SaeError(f"cannot save the architecture {architecture!r}; supported: {', '.join(KEYS)}")
    check_keys(weights, KEYS[architecture], path=path / WEIGHTS, family=architecture)
    d_sae, d_out = weights["W_dec"].shape
    d_in = len(weights["W_enc"]) if "W_enc" in weights else d_out
    transcodes = is_transcoder(architecture)
    check_tensors(weights, _shapes(architecture, d_in, d_sae, d_out if transcodes else d_in), path=path / WEIGHTS)
    written = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        **({"d_out": d_out} if transcodes else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not transcodes,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **config,
        "metadata": {"sae_lens_version": LAYOUT_VERSION, **config.get("metadata", {})},
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return path


def _folder(path: Path) -> Path:
    return path.parent if path.name in (CONFIG, WEIGHTS) else path


def _read_weights(path: Path, config: SaelensConfig) -> dict[str, Tensor]:
    tensors = read_safetensors(path)
    if "log_threshold" in tensors and "threshold" not in tensors:  # JumpReLU checkpoints of early releases
        tensors["threshold"] = tensors.pop("log_threshold").float().exp()
    for key in ("scaling_factor", "finetuning_scaling_factor"):
        if key in tensors and not (tensors.pop(key) == 1).all():
            raise SaeError(
                f"{key} in {path} is not all ones, and no release of SAELens since 6 applies it; "
                "multiply it into the rows of W_dec and remove it"
            )
    if config.temporal is None:
        shapes = _shapes(config.architecture, config.d_in, config.d_sae, config.d_out)
    else:
        shapes = temporal_shapes(config.temporal, config.d_in, config.d_sae)
    check_keys(tensors, shapes, path=path, family=config.architecture)
    check_tensors(tensors, shapes, path=path)
    if "W_enc" not in tensors and not config.apply_b_dec_to_input:
        tensors["b_dec"] = torch.zeros(config.d_out)
    return tensors


def _shapes(architecture: str, d_in: int, d_sae: int, d_out: int) -> dict[str, tuple[int, ...]]:
    special: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }
    return {key: special.get(key, (d_sae,)) for key in KEYS[architecture]}


def _rule(config: SaelensConfig, tensors: Mapping[str, Tensor], path: Path) -> Rule:
    match config.architecture:
        case "standard" | "transcoder" | "skip_transcoder":
            return Threshold(threshold_C=torch.zeros(config.d_sae))
        case "jumprelu" | "jumprelu_transcoder" | "jumprelu_skip_transcoder":
            check_not_negative(tensors["threshold"], path=path)
            return Threshold(threshold_C=tensors["threshold"])
        case "gated":
            # The gate opens at x·w + b_gate > 0; the magnitude is relu(exp(r_mag)·(x·w) + b_mag): one shared product.
            scale_C = tensors["r_mag"].double().exp()
            return Threshold(threshold_C=-tensors["b_gate"], scale_C=scale_C, offset_C=tensors["b_mag"])
        case "matching_pursuit":
            assert config.pursuit is not None
            return config.pursuit
        case "temporal":
            assert config.temporal is not None
            return temporal_rule(config.temporal, config.d_sae)
    assert config.k is not None  # what is left are the top-k families, whose k was read
    return TopK(k=config.k, signed=config.architecture == "abstopk")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Normalisation:
    input_norm: InputNorm = InputNorm.NONE
    factor: float = 1.0
    whitening: Whitening | None = None
    files: tuple[Path, ...] = ()


def _normalisation(folder: Path, config: SaelensConfig, norm_factor: float | None) -> _Normalisation:
    name = config.normalize_activations
    if name == "expected_average_only_in":
        return _expected_average(folder, norm_factor)
    if norm_factor is not None:
        raise SaeError(
            f"norm_factor={norm_factor} would have no effect: {folder / CONFIG} says normalize_activations {name!r}; "
            "leave it out"
        )
    if config.temporal is not None and name == "constant_scalar_rescale":
        return _Normalisation(factor=config.temporal.factor)
    if name == "covariance_whitening":
        return _covariance_whitening(folder, config.d_in)
    return _Normalisation(input_norm=PER_TOKEN.get(name, InputNorm.NONE))


def _expected_average(folder: Path, norm_factor: float | None) -> _Normalisation:
    path = folder / SCALER
    stored = read_json(path).get("scaling_factor") if path.is_file() else None
    if stored is not None and norm_factor is not None:
        raise SaeError(f"norm_factor={norm_factor} contradicts {path}, which stores {stored}; leave it out")
    factor = norm_factor if stored is None else stored
    if factor is None:
        raise SaeError(
            f"{folder / CONFIG} says normalize_activations 'expected_average_only_in', but the factor is not stored "
            f"({SCALER} is missing or empty); give norm_factor = sqrt(d_in) / mean norm of the training's hidden states"
        )
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise SaeError(f"the normalisation factor of {folder} is {factor!r}, expected a positive finite number")
    return _Normalisation(factor=float(factor), files=() if stored is None else (path,))


def _covariance_whitening(folder: Path, d_in: int) -> _Normalisation:
    path = folder / WHITENING
    if not path.is_file():
        raise SaeError(
            f"{folder / CONFIG} says normalize_activations 'covariance_whitening', but {WHITENING} is missing; "
            "copy it from the training checkpoint, or load the finished SAE, into which SAELens has folded it"
        )
    tensors = read_safetensors(path)
    shapes: dict[str, tuple[int, ...]] = {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}
    check_keys(tensors, shapes, path=path, family="whitened")
    check_tensors(tensors, shapes, path=path)
    mean_D, matrix_DD, inverse_DD = (tensors[key].double() for key in shapes)
    return _Normalisation(whitening=Whitening(mean_D=mean_D, matrix_DD=matrix_DD, inverse_DD=inverse_DD), files=(path,))


def _facts(config: SaelensConfig, *, source: str, digest: str) -> SaeFacts:
    return SaeFacts(
        source=source,
        format="saelens",
        architecture=config.architecture,
        site=config.site,
        hook_name=config.hook_name,
        reads=config.reads,
        model_name=config.model_name,
        prepend_bos=config.prepend_bos,
        context_size=config.context_size,
        published_l0=config.l0,
        published_fvu=config.fvu,
        digest=digest,
        num_latents=config.d_sae,
        d_in=config.d_in,
    )
