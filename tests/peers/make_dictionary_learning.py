"""Write SAEs with dictionary_learning, and what it computes with them: `python make_dictionary_learning.py FOLDER`.

Run by an interpreter that has `dictionary-learning`. Every case becomes FOLDER/dictionary_learning/<case>, as the
library's training saves it and as its class reads it, with reference.safetensors beside the weights: `x` [N, D],
`activations` [N, C], `reconstruction` [N, D].
"""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

D, N, K = 32, 256, 8
TRAINING = {"steps": 10, "layer": 3, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_3"}
TRAINING |= {"device": "cpu", "warmup_steps": 1, "decay_start": None}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # module, trainer, options
    "standard": ("standard", "StandardTrainer", {"sparsity_warmup_steps": 1}),
    "gated": ("gdm", "GatedSAETrainer", {"sparsity_warmup_steps": 1}),
    "jumprelu": ("jumprelu", "JumpReluTrainer", {"sparsity_warmup_steps": 1}),
    "topk": ("top_k", "TopKTrainer", {"k": K}),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer", {"k": K}),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", {"k": K, "group_fractions": [0.25, 0.75]}),
}


def main(folder: Path) -> None:
    """Every trainer's SAE at two widths, and AutoEncoderNew, which no trainer makes."""
    # The library imports nnsight to read a model's activations; nothing of it is used here.
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=object))  # type: ignore[arg-type]
    for dict_size in (128, D):
        for case, (module, trainer, options) in CASES.items():
            torch.manual_seed(0)
            made = importlib.import_module(f"dictionary_learning.trainers.{module}")
            config = TRAINING | options | {"activation_dim": D, "dict_size": dict_size}
            trained = getattr(made, trainer)(**config)
            write(folder / "dictionary_learning" / f"{case}-{dict_size}", trained.ae, trained.config)
        torch.manual_seed(0)
        new = importlib.import_module("dictionary_learning.dictionary").AutoEncoderNew(D, dict_size)
        stated = {"dict_class": "AutoEncoderNew", "activation_dim": D, "dict_size": dict_size}
        write(folder / "dictionary_learning" / f"new-{dict_size}", new, stated | {"layer": 3, "lm_name": "tiny"})


def write(target: Path, sae: Any, config: dict[str, Any]) -> None:
    """Randomise, save as training does, load with the library, and save what the loaded SAE computes."""
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if hasattr(sae, "threshold"):
        sae.threshold.data.fill_(0.0).add_(1.25 if sae.threshold.ndim == 0 else torch.rand(len(sae.threshold)))
    target.mkdir(parents=True, exist_ok=True)
    torch.save({key: each.cpu() for key, each in sae.state_dict().items()}, target / "ae.pt")
    (target / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128}}))
    loaded = type(sae).from_pretrained(str(target / "ae.pt"))
    x = torch.randn(N, D)
    activations = loaded.encode(x)
    reference = {"x": x, "activations": activations, "reconstruction": loaded.decode(activations)}
    save_file({key: each.detach().contiguous() for key, each in reference.items()}, target / "reference.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
