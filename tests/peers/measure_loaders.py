"""What SAELens makes of other libraries' files: `python measure_loaders.py FOLDER`, after the make scripts.

Run by an interpreter that has `sae-lens`. For each SAE of sparsify and dictionary_learning, SAELens' own loader of that
format against what the library that wrote it computes (reference.safetensors), one line of JSON each:

    active          share of the (token, latent) pairs active in either that are active in both
    activations     ‖found - expected‖ / ‖expected‖
    reconstruction  the same
    error           where it does not load
"""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def main(folder: Path) -> None:
    """One line for each file."""
    sae_lens = importlib.import_module("sae_lens")
    loaders: Any = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    # The loader of dictionary_learning is for the hub alone: let it find the file here.
    loaders.hf_hub_download = lambda repo_id, filename, **_options: str(Path(repo_id) / filename)
    converters = {
        "sparsify": partial(loaders.sparsify_disk_loader, cfg_overrides={"dtype": "float32"}),
        "dictionary_learning": partial(dictionary_learning, loaders),
    }
    for library, converter in converters.items():
        for reference in sorted((folder / library).rglob("reference.safetensors")):
            found = measure(partial(sae_lens.SAE.load_from_disk, reference.parent), converter, load_file(reference))
            sys.stdout.write(json.dumps({"file": str(reference.parent.relative_to(folder)), **found}) + "\n")


def dictionary_learning(loaders: Any, path: Path, **options: Any) -> tuple[Any, Any]:
    """Configuration and weights, as SAELens' loader gives them."""
    config, weights, _ = loaders.dictionary_learning_sae_huggingface_loader_1(
        str(path.parent), path.name, **{name: value for name, value in options.items() if name != "cfg_overrides"}
    )
    return config, weights


@torch.no_grad()
def measure(load: Any, converter: Any, reference: dict[str, Tensor]) -> dict[str, Any]:
    """How far the loaded SAE is from the reference."""
    try:
        sae = load(converter=lambda path, device, **_options: converter(path, device=device))
        a_NC = sae.encode(reference["x"])
        x_ND = sae.decode(a_NC)
    except (RuntimeError, AttributeError, KeyError, ValueError, TypeError) as error:
        return {"error": " ".join(str(error).split())[:200]}
    active_NC, expected_NC = a_NC != 0, reference["activations"] != 0
    return {
        "active": float((active_NC & expected_NC).sum() / (active_NC | expected_NC).sum()),
        "activations": float((a_NC - reference["activations"]).norm() / reference["activations"].norm()),
        "reconstruction": float((x_ND - reference["reconstruction"]).norm() / reference["reconstruction"].norm()),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
