"""Write SAEs with SAELens, and what it computes with them: `python make_saelens.py FOLDER`.

Run by an interpreter that has `sae-lens`. Every case becomes FOLDER/saelens/<case>, as the library saves it, with
reference.safetensors beside the weights: `x` [N, D], `activations` [N, C], `reconstruction` [N, D]. Architectures that
cannot be scored are written to FOLDER/saelens-refused/<case>.
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
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {"temporal": ("TemporalSAE", {"n_heads": 2, "kval_topk": K})}
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
    for case, (name, options) in REFUSED.items():
        build(name, options).save_model(folder / "saelens-refused" / case)


def build(name: str, options: dict[str, Any]) -> Any:
    """An SAE of the class, all parameters random, so that no bias is zero and no decoder is an encoder's transpose.

    Matching pursuit goes astray unless its rows have norms of about one.
    """
    library = importlib.import_module("sae_lens")
    torch.manual_seed(0)
    sae = getattr(library, name)(getattr(library, f"{name}Config")(**{"d_in": D, "d_sae": C} | options))
    for key, parameter in sae.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if "threshold" in key:
            parameter.data.abs_()
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
    torch.manual_seed(1)
    x = torch.randn(N, D) * torch.logspace(-1, 1, N)[:, None] + 0.3
    with torch.no_grad():
        activations = sae.encode(x)
        reconstruction = sae.decode(activations)
        if getattr(sae, "W_skip", None) is not None:
            reconstruction = reconstruction + x @ sae.W_skip.T
    reference = {"x": x, "activations": activations, "reconstruction": reconstruction}
    save_file({key: each.contiguous() for key, each in reference.items()}, target / "reference.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
