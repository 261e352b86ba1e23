"""Blocks of single tokens against autograd through the dense dictionaries, on a gated and on a plain MLP.

Letters: N tokens, D width, C latents.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from gradsae_fast.errors import ModelError, SaeError, ScoreError
from gradsae_fast.jacobian.block import Blocks, DictionaryPair, Point, token_blocks
from gradsae_fast.jacobian.path import find_path
from gradsae_fast.model.load import LanguageModel, prepare_model
from gradsae_fast.sae.canonical import (
    LAYER_NORM_EPS,
    InputNorm,
    InputStats,
    MatchingPursuit,
    Sae,
    Threshold,
    TopK,
    normalise_input,
)
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense

WriteSae = Callable[..., Path]
MakePair = Callable[..., DictionaryPair]
N = 7
GATED = ("model.layers.2.mlp.input", "model.layers.2.mlp")
PLAIN = ("transformer.h.1.ln_2", "transformer.h.1.mlp")


@pytest.fixture(scope="module")
def plain_lm(tiny_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A GPT-2, whose MLP has no gate."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer),
        n_embd=24,
        n_layer=3,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        activation_function="relu",
        bos_token_id=0,
        eos_token_id=1,
    )
    return prepare_model(GPT2LMHeadModel(config), tiny_tokenizer, source="plain", digest="none")


@pytest.fixture
def make_pair(tiny_lm: LanguageModel, plain_lm: LanguageModel, write_sae: WriteSae) -> MakePair:
    def make(
        lower: str = "jumprelu",
        upper: str = "jumprelu",
        *,
        point: str = "reconstruction",
        sites: tuple[str, str] = GATED,
        norm: str = "none",
        **options: Any,
    ) -> DictionaryPair:
        lm = plain_lm if sites == PLAIN else tiny_lm
        below = write_sae(lower, name="lower", seed=3, normalize_activations=norm, **options)
        above = write_sae(upper, name="upper", seed=4, normalize_activations=norm)
        path = find_path(lm, lm.site(sites[0]), lm.site(sites[1]))
        return DictionaryPair(lower=load_sae(below), upper=load_sae(above), path=path, point=Point(point))

    return make


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(N, 24, generator=torch.Generator().manual_seed(seed)) + 0.1


def blocks_of(pair: DictionaryPair, lower_ND: Tensor, **options: Any) -> Blocks:
    with torch.no_grad():
        return token_blocks(pair, lower_ND, pair.path(lower_ND), **options)


def frozen_encode(sae: Sae, stats: InputStats, hidden_D: Tensor) -> Tensor:
    """encode of one token [C], the statistics of its normalisation given."""
    match sae.input_norm:
        case InputNorm.LAYER_NORM:
            assert stats.scale_N is not None
            assert stats.shift_N is not None
            hidden_D = (hidden_D - stats.shift_N[0]) / (stats.scale_N[0] + LAYER_NORM_EPS)
        case InputNorm.CONSTANT_NORM:
            assert stats.scale_N is not None
            hidden_D = hidden_D / stats.scale_N[0]
    u_C = sae.w_enc_CD @ hidden_D + sae.bias_C
    if isinstance(sae.rule, TopK):
        kept_C = torch.zeros(len(u_C), dtype=torch.bool).scatter(0, u_C.topk(sae.rule.k).indices, True) & (u_C > 0)
        return torch.where(kept_C, u_C, 0.0)
    assert isinstance(sae.rule, Threshold)
    value_C = u_C if sae.rule.scale_C is None else u_C * sae.rule.scale_C
    value_C = value_C if sae.rule.offset_C is None else value_C + sae.rule.offset_C
    return torch.where(u_C > sae.rule.threshold_C, value_C.relu(), 0.0)


def dense_jacobian(pair: DictionaryPair, lower_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents below and above [C], and d(above)/d(below) [C, C] by autograd, of one token."""
    below_C = encode_dense(pair.lower, lower_D[None])[0].detach()
    _, stats = normalise_input(pair.lower, lower_D[None])
    decoded_D = decode_dense(pair.lower, below_C[None], stats)[0]
    error_D = torch.zeros_like(lower_D) if pair.point is Point.RECONSTRUCTION else lower_D - decoded_D
    mid_D = pair.path((decoded_D + error_D)[None])[0].detach()
    _, upper_stats = normalise_input(pair.upper, mid_D[None])

    def through(a_C: Tensor) -> Tensor:
        x_D = decode_dense(pair.lower, a_C[None], stats)[0] + error_D
        return frozen_encode(pair.upper, upper_stats, pair.path(x_D[None])[0])

    above_C = encode_dense(pair.upper, mid_D[None])[0]
    torch.testing.assert_close(through(below_C), above_C, rtol=1e-4, atol=1e-5)
    return below_C, above_C, torch.autograd.functional.jacobian(through, below_C)


def assert_equal_to_autograd(pair: DictionaryPair, lower_ND: Tensor, blocks: Blocks) -> None:
    value_P, edges1, edges2 = blocks.value_P, blocks.lower.rows.indptr, blocks.upper.rows.indptr
    at = 0
    for n, lower_D in enumerate(lower_ND):
        c1 = blocks.lower.rows.indices[edges1[n] : edges1[n + 1]].long()
        c2 = blocks.upper.rows.indices[edges2[n] : edges2[n + 1]].long()
        below_C, above_C, jacobian_CC = dense_jacobian(pair, lower_D)
        assert c1.tolist() == below_C.nonzero()[:, 0].tolist()
        assert c2.tolist() == above_C.nonzero()[:, 0].tolist()
        block = value_P[at : at + len(c1) * len(c2)].view(len(c2), len(c1))
        torch.testing.assert_close(block, jacobian_CC[c2][:, c1], rtol=1e-4, atol=1e-5)
        at += block.numel()
    assert at == len(value_P) > 50


@pytest.mark.parametrize("point", ["reconstruction", "hidden"])
@pytest.mark.parametrize("upper", ["standard", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize("lower", ["jumprelu", "topk"])
def test_blocks_equal_autograd_for_every_rule_and_both_points(
    make_pair: MakePair, lower: str, upper: str, point: str
) -> None:
    pair = make_pair(lower, upper, point=point)
    assert_equal_to_autograd(pair, hidden(), blocks_of(pair, hidden()))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("point", ["reconstruction", "hidden"])
def test_blocks_equal_autograd_with_the_statistics_of_both_inputs_held(
    make_pair: MakePair, norm: str, point: str
) -> None:
    pair = make_pair("jumprelu", "gated", norm=norm, point=point)
    assert_equal_to_autograd(pair, 3 * hidden(), blocks_of(pair, 3 * hidden()))


def test_a_plain_mlp_and_the_norm_before_it_are_no_other_case(make_pair: MakePair) -> None:
    plain = make_pair(sites=PLAIN)
    assert plain.path.names == ("transformer.h.1.mlp",)
    assert_equal_to_autograd(plain, hidden(), blocks_of(plain, hidden()))
    normed = make_pair(sites=("model.layers.2.post_attention_layernorm.input", "model.layers.2.mlp"))
    assert normed.path.names == ("model.layers.2.post_attention_layernorm", "model.layers.2.mlp")
    assert_equal_to_autograd(normed, hidden(), blocks_of(normed, hidden()))


@pytest.mark.parametrize("lower", [2, 20])
def test_either_direction_gives_the_same_block(make_pair: MakePair, lower: int) -> None:
    """Few latents below: the decoder rows are pushed forward; many: the encoder rows are pulled back."""
    pair = make_pair("topk", "topk", k=lower)
    assert_equal_to_autograd(pair, hidden(), blocks_of(pair, hidden()))


def test_a_block_depends_on_no_other_token_and_on_no_memory_budget(make_pair: MakePair) -> None:
    pair = make_pair("jumprelu", "gated")
    together = blocks_of(pair, hidden()).value_P
    alone = torch.cat([blocks_of(pair, row_D[None]).value_P for row_D in hidden()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    for budget in (1, 5, 40):
        tight = blocks_of(pair, hidden(), pairs_per_pass=budget).value_P
        torch.testing.assert_close(together, tight, rtol=1e-4, atol=1e-6)


def test_tokens_on_which_nothing_is_active_have_no_block(make_pair: MakePair) -> None:
    pair = make_pair(point="hidden")
    silent_ND = torch.cat([hidden()[:1], -1e-3 * hidden()[1:2], hidden()[2:3]])
    assert isinstance(pair.lower.rule, Threshold)
    pair.lower.rule.threshold_C.clamp_(min=0.3)
    pair.lower.bias_C.zero_()
    blocks = blocks_of(pair, silent_ND)
    counts = blocks.lower.rows.indptr.diff() * blocks.upper.rows.indptr.diff()
    assert counts[1] == 0
    assert len(blocks.value_P) == counts.sum() > 0


@pytest.mark.parametrize(
    ("reads", "writes", "why"),
    [
        ("model.layers.1", "model.layers.2.mlp", "attention lies between"),
        ("model.layers.2.self_attn.input", "model.layers.2.self_attn", "attention lies between"),
        ("model.layers.2.mlp", "model.layers.2.mlp.input", "does not depend on"),
        ("model.layers.2.post_attention_layernorm.input", "model.layers.2", "a sum such as the residual"),
        ("model.layers.2.mlp", "model.layers.2.mlp", "both are one place"),
    ],
)
def test_sites_without_a_network_of_single_tokens_between_them_are_refused(
    tiny_lm: LanguageModel, reads: str, writes: str, why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        find_path(tiny_lm, tiny_lm.site(reads), tiny_lm.site(writes))


def test_a_module_inside_the_mlp_may_be_a_site(tiny_lm: LanguageModel, tiny_model: LlamaForCausalLM) -> None:
    path = find_path(tiny_lm, tiny_lm.site("model.layers.2.mlp.down_proj.input"), tiny_lm.site("model.layers.2.mlp"))
    assert path.names == ("model.layers.2.mlp.down_proj",)
    assert not tiny_model.model.layers[2]._forward_hooks


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 48,
}


@pytest.mark.parametrize(
    ("model", "reads", "writes", "why"),
    [
        (
            lambda: BloomForCausalLM(BloomConfig(**SMALL)),
            "transformer.h.1.mlp.input",
            "transformer.h.1.mlp",
            "cannot run on one hidden state alone .*'residual'.* cannot be taken apart from its block",
        ),
        (
            lambda: BloomForCausalLM(BloomConfig(**SMALL)),
            "transformer.h.1.post_attention_layernorm",
            "transformer.h.1.mlp.dense_4h_to_h",
            r"transformer\.h\.1\.mlp\.gelu_impl.* cannot be differentiated for several vectors",
        ),
        (
            lambda: OPTForCausalLM(OPTConfig(**SMALL, word_embed_proj_dim=24, init_std=0.3)),
            "model.decoder.layers.1.fc1.input",
            "model.decoder.layers.1.fc2",
            "tokens of all texts in one row .* cannot be taken apart from its block",
        ),
    ],
)
def test_an_mlp_that_is_no_function_of_its_own_is_named(
    tiny_tokenizer: PreTrainedTokenizerFast, model: Callable[[], Any], reads: str, writes: str, why: str
) -> None:
    torch.manual_seed(0)
    lm = prepare_model(model(), tiny_tokenizer, source="tangled", digest="none")
    with pytest.raises(ModelError, match=why):
        find_path(lm, lm.site(reads), lm.site(writes))


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_a_padding_token_without_embedding_is_no_probe(tiny_tokenizer: PreTrainedTokenizerFast, padding: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, intermediate_size=48, pad_token_id=padding, initializer_range=0.3)
    lm = prepare_model(LlamaForCausalLM(config), tiny_tokenizer, source="padded", digest="none")
    assert not lm.model.get_input_embeddings().weight[padding].any()
    assert find_path(lm, lm.site("model.layers.0.mlp.input"), lm.site("model.layers.0.mlp")).names


def test_numbers_that_are_not_finite_are_refused(make_pair: MakePair) -> None:
    bad_ND = hidden().index_fill(0, torch.tensor([2]), float("nan"))
    with pytest.raises(ScoreError, match=r"NaN or Inf in the hidden states at model\.layers\.2\.mlp\.input"):
        blocks_of(make_pair(), bad_ND)


def test_a_transcoder_at_either_end_is_refused(make_pair: MakePair) -> None:
    pair = make_pair()
    transcoder = replace(pair.lower, facts=replace(pair.lower.facts, reads="model.layers.2.mlp.input"))
    with pytest.raises(SaeError, match="is a transcoder"):
        replace(pair, lower=transcoder)
    with pytest.raises(SaeError, match="is a transcoder"):
        replace(pair, upper=transcoder)


def test_latents_that_are_chosen_one_after_the_other_have_no_derivative(make_pair: MakePair) -> None:
    pair = make_pair()
    pursuit = replace(pair.upper, rule=MatchingPursuit(max_iterations=4, residual_threshold=0.0, stop_on_repeat=True))
    with pytest.raises(SaeError, match="chooses its latents one after the other"):
        replace(pair, upper=pursuit)
