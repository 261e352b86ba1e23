"""A site in its three spellings, and what is said of one that does not exist."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from gradsae_fast.errors import ModelError
from gradsae_fast.model.load import LanguageModel, prepare_model


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("model.layers.2", "model.layers.2"),
        ("model.layers.2.output", "model.layers.2"),
        ("blocks.2.hook_resid_post", "model.layers.2"),
        ("blocks.2.hook_resid_pre", "model.layers.1"),
        ("blocks.2.hook_mlp_out", "model.layers.2.mlp"),
        ("blocks.2.hook_attn_out", "model.layers.2.self_attn"),
        ("model.layers.0.mlp", "model.layers.0.mlp"),
        ("layers.1.mlp", "model.layers.1.mlp"),
        ("model.layers.2.input", "model.layers.1"),
        ("model.layers.2.mlp.input", "model.layers.2.mlp.input"),
        ("blocks.2.mlp.hook_in", "model.layers.2.mlp.input"),
        ("blocks.2.mlp.hook_out", "model.layers.2.mlp"),
        ("blocks.2.hook_resid_mid", "model.layers.2.post_attention_layernorm.stream"),
        ("blocks.2.hook_mlp_in", "model.layers.2.post_attention_layernorm.input"),
        ("blocks.2.ln2.hook_normalized", "model.layers.2.post_attention_layernorm.normalized"),
        ("blocks.2.attn.hook_z", "model.layers.2.self_attn.o_proj.input"),
    ],
)
def test_every_spelling_names_a_module(spelling: str, path: str, tiny_lm: LanguageModel) -> None:
    site = tiny_lm.site(spelling)
    assert site.path == path
    assert site.layer == int(path.split(".")[2])
    assert site.is_layer is (path.count(".") == 2)


@pytest.mark.parametrize(
    "spelling",
    ["model.layers.4", "blocks.4.hook_resid_post", "blocks.1.hook_z", "layers.4", "model.norm", "model.norm.input", ""],
)
def test_a_site_that_does_not_exist_is_refused_with_what_does(spelling: str, tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"no site .*expected model\.layers\.L.*L from 0 to 3"):
        tiny_lm.site(spelling)


@pytest.mark.parametrize("spelling", ["blocks.0.hook_resid_pre", "model.layers.0.input"])
def test_the_embedding_is_no_site(spelling: str, tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="expected layer 1 or above"):
        tiny_lm.site(spelling)


def test_what_a_module_takes_in_can_be_seen_and_exchanged(tiny_lm: LanguageModel) -> None:
    site, ids = tiny_lm.site("model.layers.1.mlp.input"), torch.arange(6)[None]
    seen: list[torch.Tensor] = []
    with torch.no_grad(), tiny_lm.site("layers.1.post_attention_layernorm").hook(tiny_lm.model, seen.append):
        clean = tiny_lm.body(input_ids=ids, use_cache=False)[0]
    with torch.no_grad(), site.hook(tiny_lm.model, seen.append), site.hook(tiny_lm.model, lambda hidden: hidden * 2):
        changed = tiny_lm.body(input_ids=ids, use_cache=False)[0]
    with torch.no_grad(), site.hook(tiny_lm.model, lambda hidden: None):
        again = tiny_lm.body(input_ids=ids, use_cache=False)[0]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(clean, again)
    assert not torch.allclose(clean, changed)


def test_where_norms_stand_behind_the_branches_hooks_follow_them() -> None:
    """In OLMo 2 the MLP takes in the residual stream itself, and what is added is the norm's output."""
    lm, path = random_model("olmo2"), "model.layers.1"
    assert lm.site("blocks.1.hook_resid_mid").path == f"{path}.mlp.stream"
    assert lm.site("blocks.1.hook_mlp_in").path == f"{path}.mlp.input"
    assert lm.site("blocks.1.hook_mlp_out").path == f"{path}.post_feedforward_layernorm"
    assert lm.site("blocks.1.hook_attn_out").path == f"{path}.post_attention_layernorm"
    assert lm.site("blocks.1.mlp.hook_out").path == f"{path}.mlp"


def test_what_a_block_multiplies_before_it_is_added_is_no_site() -> None:
    lm = random_model("granite")
    with pytest.raises(ModelError, match=r"adds 0\.5 times what mlp puts out"):
        lm.site("blocks.1.hook_mlp_out")


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_normalized_site_is_read_before_gain_and_bias(architecture: str) -> None:
    lm = random_model(architecture)
    site, mid = lm.site("blocks.1.ln2.hook_normalized"), lm.site("blocks.1.hook_resid_mid")
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for name, one in (("normalized", site), ("mid", mid)):
            stack.enter_context(one.hook(lm.model, partial(seen.__setitem__, name)))
        lm.body(input_ids=torch.arange(1, 7)[None], use_cache=False)
    centred = seen["mid"] - seen["mid"].mean(-1, keepdim=True) if architecture == "gpt2" else seen["mid"]
    expected = centred / centred.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(seen["normalized"], expected, rtol=1e-3, atol=1e-4)


def test_nothing_can_be_written_where_a_norm_is_not_done(tiny_lm: LanguageModel) -> None:
    site = tiny_lm.site("blocks.1.ln2.hook_normalized")
    with pytest.raises(ModelError, match="nothing can be written"), site.hook(tiny_lm.model, lambda hidden: hidden):
        tiny_lm.body(input_ids=torch.arange(6)[None], use_cache=False)


def random_model(architecture: str) -> LanguageModel:
    """A tiny one whose norms have random gains and biases."""
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "pad_token_id": 0}
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**sizes, **heads)),
        "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**sizes, **heads)),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(residual_multiplier=0.5, **sizes, **heads)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=3)),
    }[architecture]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prepare_model(model, None, source=architecture, digest="")


def test_what_is_given_by_name_is_taken_in_too(tiny_lm: LanguageModel) -> None:
    site, seen = tiny_lm.site("model.layers.1.self_attn.input"), list[torch.Tensor]()
    with torch.no_grad(), site.hook(tiny_lm.model, seen.append):
        tiny_lm.body(input_ids=torch.arange(6)[None], use_cache=False)
    assert seen[0].shape == (1, 6, tiny_lm.width)
