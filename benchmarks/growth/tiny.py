"""What the extractions run on: a small random llama with the demo's tokenizer, a top-k SAE, and text of any length.

Costs do not depend on whether weights were trained, as long as so many latents fire: top-k SAEs see to that.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.demo import ASSETS
from gradsae_fast.sae.formats import saelens

MAX_CONTEXT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model of so many layers, and an SAE of so many latents."""

    width: int
    layers: int
    latents: int
    active: int

    def __str__(self) -> str:
        return (
            f"random llama of {self.layers} layers and width {self.width}, top-k SAE of {self.latents:,} latents and "
            f"k = {self.active}"
        )


SHALLOW = Shape(width=64, layers=2, latents=512, active=16)
WIDE = Shape(width=64, layers=2, latents=4096, active=64)
DEEP = Shape(width=64, layers=30, latents=4096, active=64)


def write_model(folder: Path, shape: Shape) -> Path:
    """Save the model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_sae(folder: Path, width: int, latents: int, active: int) -> Path:
    """Save a top-k SAE of random directions."""
    generator = torch.Generator().manual_seed(0)
    directions_CD = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    weights = {
        "W_enc": directions_CD.T.contiguous(),
        "W_dec": directions_CD,
        "b_enc": torch.zeros(latents),
        "b_dec": torch.zeros(width),
    }
    return saelens.save(folder, architecture="topk", weights=weights, config={"k": active})


def demo_text() -> str:
    """The demo's corpus end to end."""
    return " ".join(document.text for document in open_corpus(ASSETS / "corpus.jsonl"))


def write_short_documents(path: Path, count: int, characters: int) -> Path:
    """Documents of so many characters each, cut from the demo's corpus again and again."""
    text = demo_text()
    last = len(text) - characters
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            first = number * characters % last
            file.write(json.dumps({"id": str(number), "text": text[first : first + characters]}) + "\n")
    return path


def write_long_document(path: Path, num_tokens: int) -> Path:
    """One document of as many tokens of the demo's tokenizer, or a few less."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model", model_max_length=sys.maxsize)
    text = demo_text()
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    path.write_text(json.dumps({"id": "long", "text": text[: offsets[num_tokens - 1][0]]}) + "\n", encoding="utf-8")
    return path
