"""Capture on real architectures: gradients equal plain autograd, prefixes are reused, heads are the models' own."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gradsae_fast.model.capture import capture
from gradsae_fast.model.load import LanguageModel, prepare_model
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.patching import output_hook
from gradsae_fast.model.sites import Site, Wiring
from gradsae_fast.model.states import hidden_states
from gradsae_fast.records import Batch, Document, TokenDocument, Window

VOCABULARY = 90
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Gemma2": SIZES | {"final_logit_softcapping": 3.0, "sliding_window": 8},
    "Gemma3": SIZES | {"sliding_window": 8},
    "Qwen3": SIZES,
    "Granite": SIZES | {"logits_scaling": 4.0},
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "GPTNeoX": SIZES | {"num_key_value_heads": None, "head_dim": None},
    "GPTJ": {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "Falcon": {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4},
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 3, "n_head": 4},
    "OPT": {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 24,
        "max_position_embeddings": 64,
        "init_std": 0.2,
    },
}


def load(name: str) -> LanguageModel:
    torch.manual_seed(0)
    options = {key: value for key, value in ARCHITECTURES[name].items() if value is not None}
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    config = getattr(transformers, config_name)(**options)
    class_name = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    return prepare_model(getattr(transformers, class_name)(config), None, source=name, digest="")


def make_batch(*lengths: int) -> Batch:
    generator = np.random.default_rng(0)
    windows = []
    for slot, length in enumerate(sorted(lengths, reverse=True)):
        ids = generator.integers(3, VOCABULARY, length).astype(np.int32)
        zeros = np.zeros(length, np.int32)
        document = TokenDocument(
            document=Document(key=str(slot), text="", source="", row=slot, metadata={}),
            index=slot,
            token_ids=ids,
            char_start=zeros,
            char_end=zeros,
            special=zeros.astype(bool),
            num_bos=0,
        )
        windows.append(Window(document=document, slot=slot, token_ids=ids, num_context=0, first_position=0))
    padded = np.zeros((len(windows), max(lengths)), np.int64)
    for row, window in enumerate(windows):
        padded[row, : len(window.token_ids)] = window.token_ids
    return Batch(windows=tuple(windows), token_ids_BT=padded)


def wired(*sites: Site) -> list[Wiring]:
    return [Wiring.at(site) for site in sites]


def same(_path: str, _read_RD: torch.Tensor, written_RD: torch.Tensor, _share: float) -> torch.Tensor:
    return written_RD


def halve(_path: str, _read_RD: torch.Tensor, written_RD: torch.Tensor, _share: float) -> torch.Tensor:
    return written_RD / 2


def plain_gradients(lm: LanguageModel, batch: Batch, path: str) -> torch.Tensor:
    """Gradient of the summed next-token log-probability at a module's output, window by window, logits whole."""
    parts = []
    for window in batch.windows:
        kept: list[torch.Tensor] = []

        def keep(hidden_BTD: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(hidden_BTD.detach().requires_grad_())
            return kept[0].clone()

        ids_1T = torch.from_numpy(window.token_ids.astype(np.int64))[None]
        with output_hook(lm.model.get_submodule(path), keep):
            log_prob_TV = torch.log_softmax(lm.model(input_ids=ids_1T, use_cache=False).logits[0].float(), -1)
        total = log_prob_TV[:-1].gather(1, ids_1T[0, 1:, None]).sum()
        parts.append(torch.autograd.grad(total, kept[0])[0][0])
    return torch.cat(parts)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_equal_plain_autograd_with_and_without_a_splice(name: str) -> None:
    lm = load(name)
    batch = make_batch(17, 9, 12)
    sites = [lm.site(f"{lm.layers_path}.{layer}") for layer in (0, 1, 2)]
    objectives = [Objective(name="next-token")]
    kept = capture(lm, batch, wired(*sites), objectives, chunk=7)
    spliced = capture(lm, batch, wired(*sites), objectives, splice=same, chunk=7)
    clean = hidden_states(lm, batch, sites)
    for site in sites:
        expected_RD = plain_gradients(lm, batch, site.path)
        assert expected_RD.abs().max() > 1e-4
        for found in (kept[site.path], spliced[site.path]):
            torch.testing.assert_close(found.grads["next-token"], expected_RD, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found.written_RD, clean[site.path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Llama", "Falcon", "GPTNeoX", "Gemma2"])
def test_modules_inside_a_layer_are_sites_too_even_where_their_output_is_changed_in_place(name: str) -> None:
    lm = load(name)
    batch = make_batch(13, 8)
    sites = [
        lm.site(spelling) for spelling in (f"{lm.layers_path}.0", "blocks.2.hook_mlp_out", "blocks.1.hook_mlp_out")
    ]
    objectives = [Objective(name="next-token")]
    kept = capture(lm, batch, wired(*sites), objectives)
    spliced = capture(lm, batch, wired(*sites), objectives, splice=same)
    clean = hidden_states(lm, batch, sites)
    for site in sites:
        alone = capture(lm, batch, wired(site), objectives)[site.path]
        expected_RD = plain_gradients(lm, batch, site.path)
        for found in (kept[site.path], spliced[site.path], alone):
            torch.testing.assert_close(found.grads["next-token"], expected_RD, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found.written_RD, clean[site.path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Llama", "GPTJ"])
def test_a_splice_changes_what_the_layers_above_see_and_nothing_below(name: str) -> None:
    lm = load(name)
    batch = make_batch(11, 6)
    sites = [lm.site(f"{lm.layers_path}.{layer}") for layer in (0, 2)]
    objectives = [Objective(name="next-token")]
    halved = capture(lm, batch, wired(*sites), objectives, splice=halve)
    for site in sites:
        alone = capture(lm, batch, wired(site), objectives, splice=halve)[site.path]
        found = halved[site.path]
        torch.testing.assert_close(found.grads["next-token"], alone.grads["next-token"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.values["next-token"], alone.values["next-token"], rtol=1e-5)
    clean = capture(lm, batch, wired(*sites), objectives)
    values = [captures[sites[0].path].values["next-token"] for captures in (halved, clean)]
    assert not np.allclose(values[0], values[1], rtol=1e-3)


def test_no_graph_exists_below_the_lowest_site_and_no_weight_gets_a_gradient() -> None:
    lm = load("Llama")
    seen: list[bool] = []
    with output_hook(
        lm.model.get_submodule("model.layers.0"), lambda hidden_BTD: seen.append(hidden_BTD.requires_grad)
    ):
        capture(lm, make_batch(8), wired(lm.site("model.layers.1")), [Objective(name="next-token")])
    assert seen == [False]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lm.model.parameters())


def test_logits_are_never_whole() -> None:
    lm = load("Llama")
    rows: list[int] = []
    with output_hook(lm.model.lm_head, lambda logits_1RV: rows.append(logits_1RV.shape[1])):
        capture(lm, make_batch(20, 20, 20), wired(lm.site("model.layers.1")), [Objective(name="next-token")], chunk=8)
    assert max(rows) == 8
    assert sum(rows) == 57
