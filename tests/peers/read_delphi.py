"""Read a cache with delphi's own loader: `python read_delphi.py CACHE ANSWER`.

Run by an interpreter that has `eai-delphi`. CACHE is a folder of hook points. ANSWER becomes JSON: of every hook point
and latent that delphi yields, its (row, column) pairs, activations and token ids there, and how many examples delphi
constructs from it.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(cache: Path, answer: Path) -> None:
    """Load every buffer of every hook point, whole, then one latent alone; then construct examples."""
    loader = importlib.import_module("delphi.latents.loader")
    config = importlib.import_module("delphi.config")
    settings = {
        "sampler_cfg": config.SamplerConfig(n_examples_train=2, n_examples_test=2, n_quantiles=1),
        "constructor_cfg": config.ConstructorConfig(
            example_ctx_len=4, min_examples=1, n_non_activating=1, center_examples=True
        ),
        "tokenizer": Tokenizer(),
    }
    dataset = loader.LatentDataset(raw_dir=cache, **settings)
    found: dict[str, Any] = {hookpoint: {} for hookpoint in dataset.modules}
    for buffer in dataset.buffers:
        for each in buffer:
            places = each.activation_data.locations[:, :2]
            found[each.module][str(each.latent.latent_index)] = {
                "places": places.tolist(),
                "activations": each.activation_data.activations.tolist(),
                "tokens": dataset.tokens[places[:, 0], places[:, 1]].tolist(),
            }
    hookpoint = dataset.modules[0]
    last = max(map(int, found[hookpoint]))
    torch = importlib.import_module("torch")
    alone = loader.LatentDataset(
        raw_dir=cache, modules=[hookpoint], latents={hookpoint: torch.tensor([last])}, **settings
    )
    examples = {record.latent.latent_index: len(record.examples) for record in alone}
    document = {"latents": found, "shape": list(dataset.tokens.shape), "alone": last, "examples": examples}
    answer.write_text(json.dumps(document))


class Tokenizer:
    """Names tokens by their ids; delphi asks its tokenizer for nothing else here."""

    def batch_decode(self, token_ids: Any) -> list[str]:
        """Name each."""
        return [f"<{token_id}>" for token_id in token_ids]

    decode = batch_decode


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
