"""Influences through other libraries' own SAEs: `python make_influences.py FOLDER`, after the scripts beside this one.

Run by an interpreter that has all of the libraries. Writes FOLDER/model, a tiny random Llama, and beside the weights
of every SAE influences.safetensors: each library loads its own SAE, a hook puts it behind layer 1 (a transcoder around
that layer's MLP), and the log-likelihood of fixed tokens is differentiated with respect to its latents.

    token_ids [N], lengths [B]                  the texts, one after the other
    activations [N, C]                          as the library encodes
    influence_spliced [N, C], value_spliced [B]     the library's reconstruction replaces what the network sees
    influence_kept [N, C], value_kept [B]           its error is added to it, detached

Letters: B texts, N tokens of all texts, T of one, C latents, D width.
"""

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

D, VOCABULARY, LAYER, LENGTHS = 32, 64, 1, (12, 7, 9)
Decode = Callable[[Tensor], Tensor]
Encode = Callable[[Tensor], tuple[Tensor, Decode]]
"""Hidden states [T, D] -> latents [T, C], and the reconstruction [T, D] as a function of latents."""


def main(folder: Path) -> None:
    """Every SAE that the other scripts wrote and that can be scored."""
    torch.set_num_threads(1)
    model = tiny_llama(folder / "model")
    loaders = {"saelens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}
    for library, load in loaders.items():
        for reference in sorted((folder / library).rglob("reference.safetensors")):
            encode, around_mlp = load(reference.parent), "transcode" in str(reference.relative_to(folder))
            save_file(influences(model, encode, around_mlp), reference.with_name("influences.safetensors"))


def tiny_llama(folder: Path) -> Any:
    """A random Llama of three layers, saved with a tokenizer of as many words."""
    transformers, tokenizers = importlib.import_module("transformers"), importlib.import_module("tokenizers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model.save_pretrained(folder)
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words))
    tokenizer.save_pretrained(folder)
    return model


def saelens(folder: Path) -> Encode:
    """SAELens undoes, when it decodes, the norm that encode saw. It folds a checkpoint's factor when training ends."""
    sae = importlib.import_module("sae_lens").SAE.load_from_disk(folder)
    if (folder / "activation_scaler.json").is_file():
        factor = json.loads((folder / "activation_scaler.json").read_text())["scaling_factor"]
        sae.fold_activation_norm_scaling_factor(factor)
    if sae.cfg.architecture() == "temporal":
        return temporal(sae)
    skip = getattr(sae, "W_skip", None)

    def encode(x_TD: Tensor) -> tuple[Tensor, Decode]:
        skipped_TD = 0.0 if skip is None else x_TD @ skip.T
        return sae.encode(x_TD), lambda a_TC: sae.decode(a_TC) + skipped_TD

    return encode


def temporal(sae: Any) -> Encode:
    """A text is one sequence to it. Its reconstruction decodes the predicted codes too, which are constants here."""
    importlib.import_module("sae_lens").logger.setLevel("ERROR")  # every decode warns that predicted codes are missing

    def encode(x_TD: Tensor) -> tuple[Tensor, Decode]:
        novel_1TC, predicted_1TC = sae.encode_with_predictions(x_TD[None])
        return novel_1TC[0], lambda a_TC: sae.decode(a_TC[None] + predicted_1TC.detach())[0]

    return encode


def sparsify(folder: Path) -> Encode:
    """Sparsify keeps values and latents of the active ones."""
    sae = importlib.import_module("sparsify").SparseCoder.load_from_disk(folder)

    def encode(x_TD: Tensor) -> tuple[Tensor, Decode]:
        value_TK, latent_TK, all_TC = sae.encode(x_TD)
        skipped_TD = 0.0 if sae.W_skip is None else x_TD @ sae.W_skip.mT
        a_TC = torch.zeros_like(all_TC).scatter(1, latent_TK, value_TK)
        return a_TC, lambda a_TC: sae.decode(a_TC.gather(1, latent_TK), latent_TK) + skipped_TD

    return encode


def dictionary_learning(folder: Path) -> Encode:
    """The class that the configuration names, loaded with its own defaults."""
    # The library imports nnsight to read a model's activations; nothing of it is used here.
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=object))  # type: ignore[arg-type]
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    modules = ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k")
    homes = (importlib.import_module(f"dictionary_learning.{module}") for module in modules)
    sae = next(getattr(home, name) for home in homes if hasattr(home, name)).from_pretrained(str(folder / "ae.pt"))
    return lambda x_TD: (sae.encode(x_TD), sae.decode)


def influences(model: Any, encode: Encode, around_mlp: bool) -> dict[str, Tensor]:
    """What is saved of one SAE."""
    texts = steady_texts(model, encode, around_mlp)
    parts: dict[str, list[Tensor]] = {"activations": [], "token_ids": texts, "lengths": [torch.tensor(LENGTHS)]}
    for ids_T in texts:
        for name, keep_error in (("spliced", False), ("kept", True)):
            latents_TC, value = run(model, encode, around_mlp, ids_T, keep_error)
            (grad_TC,) = torch.autograd.grad(value, latents_TC)
            parts.setdefault(f"influence_{name}", []).append(latents_TC.detach() * grad_TC)
            parts.setdefault(f"value_{name}", []).append(value.detach()[None])
        parts["activations"].append(latents_TC.detach())
    return {name: torch.cat(part).contiguous() for name, part in parts.items()}


def steady_texts(model: Any, encode: Encode, around_mlp: bool) -> list[Tensor]:
    """Random texts on which no latent is so near its threshold that another order of summation would switch it."""
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        texts = [torch.randint(VOCABULARY, (length,), generator=generator) for length in LENGTHS]
        read = [read_by_sae(model, around_mlp, ids_T) for ids_T in texts]
        if all(is_steady(encode, x_TD, generator) for x_TD in read):
            return texts
    raise RuntimeError("of 1,000 texts, none keeps its active latents under rounding")


@torch.no_grad()
def is_steady(encode: Encode, x_TD: Tensor, generator: torch.Generator) -> bool:
    """Whether the active latents stay as they are when every component changes by about 1e-5."""
    active_TC = encode(x_TD)[0] != 0
    nudges = (1 + 1e-5 * torch.randn(x_TD.shape, generator=generator) for _ in range(4))
    return all(torch.equal(encode(x_TD * nudge_TD)[0] != 0, active_TC) for nudge_TD in nudges)


@torch.no_grad()
def read_by_sae(model: Any, around_mlp: bool, ids_T: Tensor) -> Tensor:
    """The layer's output, or what its MLP takes in [T, D]."""
    found: list[Tensor] = []
    layer = model.model.layers[LAYER]
    handle = (layer.mlp if around_mlp else layer).register_forward_hook(
        lambda _module, args, output: found.append((args[0] if around_mlp else output)[0].clone())
    )
    model(input_ids=ids_T[None], use_cache=False)
    handle.remove()
    return found[0]


def run(model: Any, encode: Encode, around_mlp: bool, ids_T: Tensor, keep_error: bool) -> tuple[Tensor, Tensor]:
    """The latents as a leaf of the graph [T, C], and the text's log-likelihood with the SAE in its place."""
    leaves: list[Tensor] = []

    def hook(_module: Any, args: Any, output: Tensor) -> Tensor:
        with torch.no_grad():
            latents_TC, decode = encode(args[0][0] if around_mlp else output[0])
        leaves.append(latents_TC.clone().requires_grad_())
        decoded_TD = decode(leaves[0])
        error_TD = (output[0] - decoded_TD).detach() if keep_error else 0.0
        return (decoded_TD + error_TD)[None]

    layer = model.model.layers[LAYER]
    handle = (layer.mlp if around_mlp else layer).register_forward_hook(hook)
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
    handle.remove()
    return leaves[0], logits_TV[:-1].log_softmax(-1).gather(1, ids_T[1:, None]).sum()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
