"""Write SAEs with SAELens, and what it computes with them: `python make_saelens.py FOLDER`.

Run by an interpreter that has `sae-lens`. Every case becomes FOLDER/saelens/<case>, as the library saves it, with
reference.safetensors beside the weights: `x` [N, D], `activations` [N, C], `reconstruction` [N, D]; of a temporal SAE
also `lengths`, the tokens of each window.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

D, C, N, K = 32, 128, 256, 8
NORMS = ("none", "layer_norm", "constant_norm_rescale")
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # class, options
    "standard": ("StandardSAE", {}),
    "standard-square": ("StandardSAE", {"d_sae": D}),
    "standard-no-input-bias": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "gated": ("GatedSAE", {}),
    "jumprelu": ("JumpReLUSAE", {}),
    "topk": ("TopKSAE", {"k": K}),
    "topk-rescaled": ("TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ("AbsTopKSAE", {"k": K}),
    "abstopk-rescaled": ("AbsTopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "matching-pursuit": ("MatchingPursuitSAE", {}),
    "matching-pursuit-no-input-bias": ("MatchingPursuitSAE", {"apply_b_dec_to_input": False, "max_iterations": K}),
    "matching-pursuit-repeats": ("MatchingPursuitSAE", {"stop_on_duplicate_support": False, "residual_threshold": 2.0}),
}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {  # saved for inference by a class for training
    "batchtopk": ("BatchTopKTrainingSAE", {"k": K}),
    "matryoshka": ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [C // 4, C]}),
    "jumprelu-trained": ("JumpReLUTrainingSAE", {}),
    "abstopk-trained": ("AbsTopKTrainingSAE", {"k": K}),
    "matching-pursuit-trained": ("MatchingPursuitTrainingSAE", {"decoder_init_norm": 1.0}),
}
TRANSCODERS: dict[str, str] = {
    "transcoder": "Transcoder",
    "transcoder-skip": "SkipTranscoder",
    "transcoder-jumprelu": "JumpReLUTranscoder",
    "transcoder-jumprelu-skip": "JumpReLUSkipTranscoder",
}
TEMPORAL: dict[str, dict[str, Any]] = {
    "temporal": {"kval_topk": K},
    "temporal-all-positive": {},
    "temporal-relu": {"sae_diff_type": "relu", "kval_topk": K},
    "temporal-no-input-bias": {"kval_topk": K, "apply_b_dec_to_input": False},
    "temporal-untied": {"kval_topk": K, "tied_weights": False},
    "temporal-untied-no-input-bias": {"kval_topk": K, "tied_weights": False, "apply_b_dec_to_input": False},
    "temporal-deep": {"kval_topk": K, "n_attn_layers": 3, "n_heads": 4, "bottleneck_factor": 4},
}
LENGTHS = (1, 70, 2, 9, 100, 74)  # windows of a temporal SAE's N tokens
FACTOR = 0.37


def main(folder: Path) -> None:
    """Every class in every normalisation."""
    for norm in NORMS:
        for case, (name, options) in CASES.items():
            sae = build(name, options | {"normalize_activations": norm})
            target = folder / "saelens" / f"{case}-{norm}"
            sae.save_model(target)
            refer(sae, target)
    for case, (name, options) in TRAINED.items():
        target = folder / "saelens" / case
        build(name, options).save_inference_model(target)
        refer(importlib.import_module("sae_lens").SAE.load_from_disk(target), target)
    scaled(folder / "saelens" / "matching-pursuit-scaled")
    for case, name in TRANSCODERS.items():
        sae = build(name, {"d_out": D, "apply_b_dec_to_input": False})
        sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"
        sae.save_model(folder / "saelens" / case)
        refer(sae, folder / "saelens" / case)
    for norm in (*NORMS, "constant_scalar_rescale"):
        for case, options in TEMPORAL.items():
            heads = {"n_heads": 2, "bottleneck_factor": 16, "activation_normalization_factor": FACTOR}
            sae = build("TemporalSAE", heads | options | {"normalize_activations": norm})
            sae.save_model(folder / "saelens" / f"{case}-{norm}")
            refer_windows(sae, folder / "saelens" / f"{case}-{norm}")


def build(name: str, options: dict[str, Any]) -> Any:
    """An SAE of the class, all parameters random, so that no bias is zero and no decoder is an encoder's transpose.

    Matching pursuit goes astray unless its rows have norms of about one. A temporal SAE divides its codes by
    4 D, so that its novel latents count for nothing unless the rows of W_dec have norms of about the root of that.
    """
    library = importlib.import_module("sae_lens")
    torch.manual_seed(0)
    sae = getattr(library, name)(getattr(library, f"{name}Config")(**{"d_in": D, "d_sae": C} | options))
    for key, parameter in sae.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if "threshold" in key:
            parameter.data.abs_()
        if name == "TemporalSAE" and key in ("W_enc", "W_dec"):
            parameter.data *= 7
    if "MatchingPursuit" in name:
        sae.W_dec.data *= torch.linspace(0.8, 1.05, C)[:, None] / sae.W_dec.data.norm(dim=1, keepdim=True)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(1.25)
    return sae


def scaled(target: Path) -> None:
    """A checkpoint that names its factor beside it; the reference is of the SAE into which SAELens folded it."""
    sae = build("MatchingPursuitSAE", {"normalize_activations": "expected_average_only_in", "residual_threshold": 0.5})
    sae.save_model(target)
    (target / "activation_scaler.json").write_text(json.dumps({"scaling_factor": FACTOR}))
    sae.fold_activation_norm_scaling_factor(FACTOR)
    refer(sae, target)


def refer(sae: Any, target: Path) -> None:
    """What the SAE computes; encode first, because decode undoes the norm that encode saw."""
    x = hidden_states()
    with torch.no_grad():
        activations = sae.encode(x)
        reconstruction = sae.decode(activations)
        if getattr(sae, "W_skip", None) is not None:
            reconstruction = reconstruction + x @ sae.W_skip.T
    write({"x": x, "activations": activations, "reconstruction": reconstruction}, target)


def refer_windows(sae: Any, target: Path) -> None:
    """The same of a temporal SAE, window after window; only its forward adds what it predicts to what it decodes."""
    x = hidden_states()
    with torch.no_grad():
        parts = [(sae.encode(window[None])[0], sae(window[None])[0]) for window in x.split(LENGTHS)]
    activations, reconstruction = (torch.cat(each) for each in zip(*parts, strict=True))
    lengths = torch.tensor(LENGTHS)
    write({"x": x, "lengths": lengths, "activations": activations, "reconstruction": reconstruction}, target)


def hidden_states() -> torch.Tensor:
    """Of very different norms, off centre [N, D]."""
    torch.manual_seed(1)
    return torch.randn(N, D) * torch.logspace(-1, 1, N)[torch.randperm(N), None] + 0.3


def write(reference: dict[str, torch.Tensor], target: Path) -> None:
    """Keep a reference beside the weights."""
    save_file({key: each.contiguous() for key, each in reference.items()}, target / "reference.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
