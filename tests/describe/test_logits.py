"""Direct logit effects are what the model's own forward gives for a decoder row, whatever its norm and head."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from gradsae_fast.describe import logits
from gradsae_fast.describe.logits import direct_effects, logit_effects, require_residual, token_text
from gradsae_fast.errors import ModelError
from gradsae_fast.model.load import LanguageModel, prepare_model
from gradsae_fast.model.patching import output_hook

WIDTH = 24
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2", "cohere"])
def any_lm(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """RMSNorm; RMSNorm of 1 + w and a soft-cap; LayerNorm with bias; LayerNorm and scaled logits."""
    if request.param == "llama":
        lm: LanguageModel = request.getfixturevalue("tiny_lm")
        return lm
    torch.manual_seed(0)
    size = len(tiny_tokenizer) + 5
    models: dict[str, Any] = {
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=size, head_dim=8, **SHAPE)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=WIDTH, n_layer=2, n_head=3)),
        "cohere": lambda: CohereForCausalLM(CohereConfig(vocab_size=size, logit_scale=0.25, **SHAPE)),
    }
    model = models[request.param]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prepare_model(model, tiny_tokenizer, source=request.param, digest="none")


def rows(count: int = 5) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3))


def forward_with(lm: LanguageModel, hidden_D: torch.Tensor) -> torch.Tensor:
    """Last logits of the model on two tokens, when the last layer puts out the row at both."""
    last = f"{lm.layers_path}.{len(lm.layers) - 1}"
    with torch.no_grad(), output_hook(lm.model.get_submodule(last), lambda hidden: hidden_D.expand_as(hidden)):
        return lm.model(input_ids=torch.tensor([[3, 4]])).logits[0, -1].float()


def test_with_no_layer_above_an_effect_is_the_models_own_logit(any_lm: LanguageModel) -> None:
    row_KD = rows()
    expected = torch.stack(
        [
            forward_with(any_lm, row_D * WIDTH**0.5 / row_D.norm()) - forward_with(any_lm, torch.zeros(WIDTH))
            for row_D in row_KD
        ]
    )
    found = logit_effects(any_lm, row_KD)
    torch.testing.assert_close(found, expected - expected.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert found.std() > 0.1


def test_an_effect_is_the_normed_row_times_the_unembedding(tiny_lm: LanguageModel) -> None:
    row_KD = rows()
    normed_KD = row_KD / row_KD.square().mean(1, keepdim=True).sqrt() * tiny_lm.model.model.norm.weight
    expected_KV = normed_KD @ tiny_lm.model.lm_head.weight.T
    expected_KV -= expected_KV.mean(1, keepdim=True)
    torch.testing.assert_close(logit_effects(tiny_lm, row_KD), expected_KV, rtol=1e-4, atol=1e-4)


def test_the_length_of_a_row_does_not_matter_and_a_row_of_zeros_has_no_effect(any_lm: LanguageModel) -> None:
    row_KD = rows()
    found_KV = logit_effects(any_lm, row_KD)
    torch.testing.assert_close(logit_effects(any_lm, 1e-6 * row_KD), found_KV, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logit_effects(any_lm, 1e4 * row_KD), found_KV, rtol=1e-4, atol=1e-5)
    assert not logit_effects(any_lm, torch.zeros(1, WIDTH)).any()


def test_promoted_and_suppressed_tokens_are_the_extremes_among_those_the_tokenizer_has(any_lm: LanguageModel) -> None:
    row_KD = rows()
    effect_KV = logit_effects(any_lm, row_KD).numpy()[:, : len(any_lm.tokenizer)]
    order_KV = np.argsort(effect_KV, 1)
    found = direct_effects(any_lm, row_KD, 7)
    np.testing.assert_array_equal(found.promoted_KM, order_KV[:, :-8:-1])
    np.testing.assert_array_equal(found.suppressed_KM, order_KV[:, :7])
    np.testing.assert_array_equal(found.promoted_effect_KM, np.take_along_axis(effect_KV, found.promoted_KM, 1))
    np.testing.assert_array_equal(found.suppressed_effect_KM, np.take_along_axis(effect_KV, found.suppressed_KM, 1))


def test_tiles_of_latents_change_nothing(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = direct_effects(tiny_lm, rows(), 4)
    monkeypatch.setattr(logits, "LOGITS_PER_TILE", 2 * len(tiny_lm.tokenizer))
    tiled = direct_effects(tiny_lm, rows(), 4)
    np.testing.assert_array_equal(tiled.promoted_KM, whole.promoted_KM)
    np.testing.assert_allclose(tiled.suppressed_effect_KM, whole.suppressed_effect_KM, rtol=1e-5)


def test_only_what_is_added_to_the_residual_stream_has_a_direct_effect(any_lm: LanguageModel) -> None:
    kind = any_lm.source
    good = {"gpt2": ["", ".attn", ".mlp"], "gemma2": ["", ".post_attention_layernorm", ".post_feedforward_layernorm"]}
    bad = {"gpt2": [".mlp.c_fc", ".ln_2"], "gemma2": [".mlp", ".self_attn"]}
    for name in good.get(kind, ["", ".self_attn", ".mlp"]):
        require_residual(any_lm, any_lm.site(f"{any_lm.layers_path}.1{name}"))
    for name in bad.get(kind, [".mlp.up_proj", ".input_layernorm"]):
        with pytest.raises(ModelError, match="residual stream"):
            require_residual(any_lm, any_lm.site(f"{any_lm.layers_path}.1{name}"))


def test_what_a_module_takes_in_has_no_direct_effect(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"mlp\.input does not add"):
        require_residual(tiny_lm, tiny_lm.site("model.layers.1.mlp.input"))


def test_a_token_reads_as_it_does_in_text(tiny_lm: LanguageModel) -> None:
    text = "the union of states"
    ids = tiny_lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_text(tiny_lm, token_id) for token_id in ids) == text
    assert token_text(tiny_lm, tiny_lm.tokenizer.convert_tokens_to_ids("Ã")) == "Ã"


def test_a_sentencepiece_token_keeps_the_space_in_front(tiny_lm: LanguageModel) -> None:
    pieces = Tokenizer(models.BPE(vocab={"▁the": 0, "the": 1, "▁": 2}, merges=[]))
    pieces.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    lm = dataclasses.replace(tiny_lm, tokenizer=tokenizer)
    assert [token_text(lm, token_id) for token_id in range(2)] == [" the", "the"]
