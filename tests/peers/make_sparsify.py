"""Write SAEs with EleutherAI's sparsify, and what it computes with them: `python make_sparsify.py FOLDER`.

Run by an interpreter that has `eai-sparsify`. Every case becomes FOLDER/sparsify/<case>/<hook point>, as the library
saves it, with reference.safetensors beside the weights: `x` [N, D], `activations` [N, C], `reconstruction` [N, D].
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

D, N = 32, 256
CASES: dict[str, dict[str, Any]] = {
    "topk": {"num_latents": 128, "k": 8},
    "topk-few-positive": {"num_latents": 40, "k": 32},
    "topk-expansion": {"expansion_factor": 4, "k": 8},
    "topk-square": {"num_latents": D, "k": 8},
    "topk-free-decoder": {"num_latents": 128, "k": 8, "normalize_decoder": False},
    "groupmax": {"num_latents": 128, "k": 8, "activation": "groupmax"},
    "transcoder": {"num_latents": 128, "k": 8, "transcode": True},
    "transcoder-skip": {"num_latents": 128, "k": 8, "transcode": True, "skip_connection": True},
}


def main(folder: Path) -> None:
    """Every case, with all parameters random, so that no bias is zero and no decoder is an encoder's transpose."""
    sparsify = importlib.import_module("sparsify")
    for case, options in CASES.items():
        torch.manual_seed(0)
        sae = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(**options))
        for parameter in sae.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(N, D)
        top_acts, top_indices, pre_acts = sae.encode(x)
        activations = torch.zeros_like(pre_acts).scatter(1, top_indices, top_acts)
        reconstruction = sae.decode(top_acts, top_indices)
        if sae.W_skip is not None:
            reconstruction = reconstruction + x @ sae.W_skip.mT
        reference = {"x": x, "activations": activations, "reconstruction": reconstruction}
        target = folder / "sparsify" / case / ("layers.3.mlp" if sae.cfg.transcode else "layers.3")
        sae.save_to_disk(target)
        save_file(
            {key: each.detach().contiguous() for key, each in reference.items()}, target / "reference.safetensors"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
