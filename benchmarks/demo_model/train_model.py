"""Train the demo language model: a byte-level BPE tokenizer, then a small Llama, on the training addresses.

Addresses since 1930 are read several times in each pass, earlier ones once: the demo is about modern English, and
the older text is there to teach grammar. Weights are rounded to float16 at the end; that file is the model.

    python -m benchmarks.demo_model.train_model CORPUS OUT

writes OUT/model/ (a transformers folder), OUT/training.json and, on the way, OUT/checkpoint.pt; a run that was
stopped goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.demo_model.sequences import BOS_ID, EOS_ID, repeats, tokenise, training_batches, windows
from benchmarks.demo_model.split import Address, read_addresses, split


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that shapes the model."""

    vocab_size: int = 4096
    width: int = 192
    layers: int = 6
    heads: int = 6
    mlp_width: int = 448
    context: int = 256
    batch: int = 16
    steps: int = 1250
    warmup: int = 100
    cosine_steps: int = 2000
    cooldown_from: int = 1000
    learning_rate: float = 3e-3
    final_share: float = 0.05
    weight_decay: float = 0.1
    modern_repeats: int = 3
    bfloat16: bool = True
    seed: int = 2026


def train_tokenizer(addresses: list[Address], recipe: Recipe) -> Tokenizer:
    """Byte-level BPE: no unknown token; BOS is prepended unless special tokens are switched off."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    times = repeats(addresses, recipe.modern_repeats)
    texts = [a.text for a, count in zip(addresses, times, strict=True) for _ in range(count)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A",
        pair="<|bos|> $A <|bos|>:1 $B:1",
        special_tokens=[("<|bos|>", BOS_ID)],
    )
    return tokenizer


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """An untrained Llama; projections back into the residual stream start smaller, by depth."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=True,
        initializer_range=0.03,
        use_cache=False,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * recipe.layers))
    return model


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, the first part of a cosine, then a straight cool-down to `final_share` of the peak."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    turn = min(step, recipe.cooldown_from)
    progress = (turn - recipe.warmup) / (recipe.cosine_steps - recipe.warmup)
    share = recipe.final_share + (1 - recipe.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    cooled = (step - turn) / max(1, recipe.steps - recipe.cooldown_from)
    return recipe.learning_rate * (share + (recipe.final_share - share) * cooled)


def build_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def next_token_loss(model: LlamaForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """Mean nats per predicted token; every position but the last predicts."""
    logits_BTV = model(input_ids=ids_BT).logits.float()
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def save_checkpoint(path: Path, step: int, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> None:
    """Replace the checkpoint in one move, so that a killed run never leaves half a file."""
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> int:
    """The step to go on from: 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train(
    model: LlamaForCausalLM, documents: list[list[int]], times: list[int], recipe: Recipe, checkpoint: Path
) -> float:
    """Run the recipe; returns the seconds that this process trained for. A checkpoint is picked up where it stopped."""
    optimizer = build_optimizer(model, recipe)
    first = load_checkpoint(checkpoint, model, optimizer)
    batches = training_batches(documents, times, context=recipe.context, batch=recipe.batch, seed=recipe.seed)
    began, recent = time.perf_counter(), 0.0
    for step, ids_BT in zip(range(recipe.steps), batches, strict=False):
        if step < first:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            loss = next_token_loss(model, ids_BT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = loss.item() if recent == 0.0 else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1} loss {recent:.4f} seconds {time.perf_counter() - began:.0f}", flush=True)
        if (step + 1) % 50 == 0:
            save_checkpoint(checkpoint, step + 1, model, optimizer)
    return time.perf_counter() - began


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, documents: list[list[int]], context: int) -> float:
    """Mean nats per token over documents, every token once."""
    nats, tokens = 0.0, 0
    for document in documents:
        for window in windows(document, context):
            nats += next_token_loss(model, torch.tensor([window])).item() * (len(window) - 1)
            tokens += len(window) - 1
    return nats / tokens


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path, recipe: Recipe) -> None:
    """The transformers folder: float16 weights, the tokenizer as AutoTokenizer reads it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", model_max_length=recipe.context
    )
    fast.save_pretrained(out)
    model.half().save_pretrained(out)


def parse() -> tuple[Path, Path, Recipe]:
    """Corpus, output folder and recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="JSON Lines of addresses, plain or .gz")
    parser.add_argument("out", type=Path, help="folder for model/ and the checkpoint")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments.corpus, arguments.out, Recipe(steps=arguments.steps)


def main() -> None:
    corpus, out, recipe = parse()
    out.mkdir(parents=True, exist_ok=True)
    train_part, held_out = split(read_addresses(corpus))
    tokenizer = train_tokenizer(train_part, recipe)
    documents = tokenise(tokenizer, train_part)
    model = build_model(recipe)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {sum(map(len, documents))} training tokens", flush=True)
    seconds = train(model, documents, repeats(train_part, recipe.modern_repeats), recipe, out / "checkpoint.pt")
    loss = mean_loss(model, tokenise(tokenizer, held_out), recipe.context)
    print(f"held-out loss {loss:.4f} nats per token (float32 weights), {seconds:.0f} s")
    save(model, tokenizer, out / "model", recipe)
    record = {"recipe": asdict(recipe), "seconds": seconds, "held_out_loss_float32": loss, "parameters": parameters}
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
