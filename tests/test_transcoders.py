"""Transcoders read one site and write another: activations come from the read one, gradients from the written one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsae_fast.ablate import Removal, ablate, scored_windows
from gradsae_fast.config import ScoreConfig
from gradsae_fast.errors import ConfigError, ModelError, SaeError
from gradsae_fast.gate import median_norms, run_gate
from gradsae_fast.method import Method, resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.sites import Wiring
from gradsae_fast.positions import scored_positions
from gradsae_fast.quality import Tally
from gradsae_fast.records import TokenMask
from gradsae_fast.sae.canonical import InputNorm, Sae, SaeFacts, Threshold, TopK
from gradsae_fast.score import SitedSae, score_batch
from tests.conftest import WIDTH
from tests.influences import TEXTS, MakeBatch, dense, oracle

NEXT_TOKEN = Objective(name="next-token")
NUM_LATENTS = 40
READS, WRITES = "model.layers.1.post_attention_layernorm", "model.layers.1.mlp"


def make_transcoder(
    *,
    num_written: int = 1,
    skip: bool = False,
    top_k: int | None = None,
    norm: InputNorm = InputNorm.NONE,
    width: int = WIDTH,
) -> Sae:
    """A random one that writes some sites of `WIDTH`."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    threshold = Threshold(threshold_C=normal(NUM_LATENTS).abs())
    facts = SaeFacts(source="made here", format="test", architecture="", digest="", num_latents=NUM_LATENTS, d_in=width)
    return Sae(
        w_enc_CD=normal(NUM_LATENTS, width),
        w_dec_CD=normal(NUM_LATENTS, num_written * WIDTH, size=0.2),
        bias_C=normal(NUM_LATENTS),
        b_dec_D=normal(num_written * WIDTH, size=0.1),
        rule=threshold if top_k is None else TopK(k=top_k),
        input_norm=norm,
        facts=facts,
        w_skip_DD=normal(width, WIDTH, size=0.3) if skip else None,
    )


def wire(lm: LanguageModel, sae: Sae, reads: str = READS, *writes: str, sink_norm: float = float("inf")) -> SitedSae:
    wiring = Wiring(
        reads=lm.site(reads),
        writes=tuple(lm.site(path) for path in writes or (WRITES,)),
        is_cross_layer=len(writes) > 1,
    )
    return SitedSae(wiring=wiring, sae=sae, sink_norm=sink_norm)


def method_of(preset: str, **options: Any) -> Method:
    return resolve_method(ScoreConfig(preset=preset, objectives=("next-token",), **options))  # type: ignore[arg-type]


def by_hand(lm: LanguageModel, one: SitedSae, token_ids: Any, *, keep_error: bool) -> tuple[Tensor, Tensor]:
    """Activations and influences [T, C] by a plain patch of the modules, every position spliced, one plain ReLU SAE."""
    ids_1T = torch.from_numpy(token_ids.astype(np.int64))[None]
    layer, sae = lm.model.get_submodule("model.layers.1"), one.sae
    kept: list[Tensor] = []
    original = layer.mlp.forward

    def patched(x_1TD: Tensor) -> Tensor:
        pre_1TC = x_1TD @ sae.w_enc_CD.T + sae.bias_C
        assert isinstance(sae.rule, Threshold)
        latents = torch.where(pre_1TC > sae.rule.threshold_C, pre_1TC.relu(), 0.0).detach().requires_grad_()
        kept.append(latents)
        written = latents @ sae.w_dec_CD + sae.b_dec_D
        if sae.w_skip_DD is not None:
            written = written + (x_1TD @ sae.w_skip_DD).detach()
        return written + (original(x_1TD) - written).detach() if keep_error else written

    layer.mlp.forward = patched
    try:
        log_prob_TV = torch.log_softmax(lm.model(input_ids=ids_1T, use_cache=False).logits[0], -1)
    finally:
        del layer.mlp.forward
    total = log_prob_TV[:-1].gather(1, ids_1T[0, 1:, None]).sum()
    grad = torch.autograd.grad(total, kept[0])[0]
    return kept[0][0].detach(), (kept[0] * grad)[0].detach()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("preset", ["paper", "attribution-patching"])
def test_scores_are_those_of_a_model_whose_mlp_is_patched_by_hand(
    preset: str, skip: bool, tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    one = wire(tiny_lm, make_transcoder(skip=skip))
    batch = make_batch(TEXTS[:1], bos=False, context_length=200)
    scores = score_batch(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], batch).sites[WRITES]
    activation_TC, influence_TC = by_hand(
        tiny_lm, one, batch.windows[0].token_ids, keep_error=preset == "attribution-patching"
    )
    found = replace(scores, projections={"one": np.ones_like(scores.activation)})
    np.testing.assert_allclose(dense(found, "one"), activation_TC, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(dense(scores, "next-token"), influence_TC, rtol=2e-3, atol=2e-5)
    assert influence_TC.abs().max() > 1e-3


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching", "paper"])
@pytest.mark.parametrize(
    ("reads", "options"),
    [
        (READS, {}),
        ("model.layers.1.mlp.input", {"skip": True}),
        ("blocks.1.hook_resid_mid", {"top_k": 5}),
        ("model.layers.0", {"norm": InputNorm.CONSTANT_NORM, "skip": True}),
        ("blocks.1.hook_resid_pre", {"norm": InputNorm.LAYER_NORM, "top_k": 7}),
    ],
)
def test_scores_equal_autograd_through_the_dense_transcoder(
    reads: str, options: dict[str, Any], preset: str, tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    one = wire(tiny_lm, make_transcoder(**options), reads, sink_norm=16.0)
    method, batch = method_of(preset), make_batch()
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    assert 0 < ((scores.mask_N & TokenMask.NORM) != 0).mean() < 0.5
    assert ((scores.mask_N & TokenMask.NORM) == 0).any()
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    assert np.abs(expected_NC).max() > 1e-3
    np.testing.assert_allclose(dense(scores.sites[WRITES], "next-token"), expected_NC, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_a_transcoder_beside_other_saes_scores_as_it_does_alone(
    preset: str, tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    transcoder = wire(tiny_lm, make_transcoder(skip=True))
    plain = [
        SitedSae(wiring=Wiring.at(tiny_lm.site(path)), sae=make_transcoder())
        for path in (READS, "layers.0", "blocks.2.hook_resid_mid")
    ]
    batch, method = make_batch(), method_of(preset)
    together = score_batch(tiny_lm, [*plain, transcoder], method, [NEXT_TOKEN], batch)
    for one in (*plain, transcoder):
        alone = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
        found_NC, alone_NC = (dense(scores.sites[one.site.path], "next-token") for scores in (together, alone))
        np.testing.assert_allclose(found_NC, alone_NC, rtol=1e-3, atol=1e-5)


def test_a_cross_layer_transcoder_meets_the_gradients_of_all_sites_that_it_writes(
    tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    written = [f"model.layers.{layer}.mlp" for layer in (1, 2, 3)]
    sae = make_transcoder(num_written=3)
    one = wire(tiny_lm, sae, READS, *written)
    batch, method = make_batch(TEXTS[:2], context_length=200), method_of("attribution-patching")
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch).sites[WRITES]
    parts = []
    for path, w_dec_CD, b_dec_D in zip(written, sae.w_dec_CD.chunk(3, 1), sae.b_dec_D.chunk(3), strict=True):
        part = wire(tiny_lm, replace(sae, w_dec_CD=w_dec_CD.contiguous(), b_dec_D=b_dec_D), READS, path)
        parts.append(dense(score_batch(tiny_lm, [part], method, [NEXT_TOKEN], batch).sites[path], "next-token"))
    np.testing.assert_allclose(dense(scores, "next-token"), sum(parts), rtol=1e-3, atol=1e-5)
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    np.testing.assert_allclose(dense(scores, "next-token"), expected_NC, rtol=2e-3, atol=2e-5)


def test_a_cross_layer_transcoder_cannot_be_spliced(tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    one = wire(tiny_lm, make_transcoder(num_written=2), READS, WRITES, "model.layers.2.mlp")
    with pytest.raises(ConfigError, match=r"writes 2 sites.*--preset attribution-patching"):
        score_batch(tiny_lm, [one], method_of("gradsae"), [NEXT_TOKEN], make_batch())


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_the_written_site_lies_above_the_read_one(preset: str, tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    one = wire(tiny_lm, make_transcoder(), "model.layers.2", WRITES)
    with pytest.raises(ModelError, match=r"reads model\.layers\.2, which is computed after it"):
        score_batch(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], make_batch())


@pytest.mark.parametrize("preset", ["paper", "attribution-patching"])
def test_an_sae_of_the_stream_inside_a_layer_changes_what_goes_past_the_mlp_too(
    preset: str, tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    sae, layer = make_transcoder(), tiny_lm.model.model.layers[1]
    one = SitedSae(wiring=Wiring.at(tiny_lm.site("blocks.1.hook_resid_mid")), sae=sae)
    batch = make_batch(TEXTS[:1], bos=False, context_length=200)
    scores = score_batch(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], batch)
    kept: list[Tensor] = []

    def patched(hidden_1TD: Tensor, **kwargs: Any) -> Tensor:
        attended_1TD, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_1TD), **kwargs)
        middle_1TD = (hidden_1TD + attended_1TD).detach()
        pre_1TC = middle_1TD @ sae.w_enc_CD.T + sae.bias_C
        assert isinstance(sae.rule, Threshold)
        kept.append(torch.where(pre_1TC > sae.rule.threshold_C, pre_1TC.relu(), 0.0).requires_grad_())
        decoded_1TD = kept[0] @ sae.w_dec_CD + sae.b_dec_D
        if preset == "attribution-patching":
            decoded_1TD = decoded_1TD + (middle_1TD - decoded_1TD).detach()
        return decoded_1TD + layer.mlp(layer.post_attention_layernorm(decoded_1TD))

    ids_1T = torch.from_numpy(batch.token_ids_BT)
    layer.forward = patched
    try:
        log_prob_TV = torch.log_softmax(tiny_lm.model(input_ids=ids_1T, use_cache=False).logits[0], -1)
    finally:
        del layer.forward
    total = log_prob_TV[:-1].gather(1, ids_1T[0, 1:, None]).sum()
    influence_TC = (kept[0] * torch.autograd.grad(total, kept[0])[0])[0].detach()
    assert scores.values[one.site.path]["next-token"][0] == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(dense(scores.sites[one.site.path], "next-token"), influence_TC, rtol=2e-3, atol=2e-5)


def test_a_token_is_a_sink_by_what_a_transcoder_reads_too(tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    one, batch = wire(tiny_lm, make_transcoder(), "blocks.1.hook_resid_mid"), make_batch()
    medians = median_norms(tiny_lm, [one], [batch])
    assert set(medians) == {WRITES, one.wiring.reads.path}
    clean, limited = (
        score_batch(tiny_lm, [each], method_of("gradsae"), [NEXT_TOKEN], batch).mask_N & TokenMask.NORM
        for each in (one, replace(one, read_sink_norm=1.1 * medians[one.wiring.reads.path]))
    )
    assert not clean.any()
    assert 0.05 < (limited != 0).mean() < 0.6


def test_a_wrong_width_is_named_with_its_site(tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    one = wire(tiny_lm, make_transcoder(width=WIDTH + 1))
    with pytest.raises(SaeError, match=r"reads width 25, but model\.layers\.1\.post_attention_layernorm has width 24"):
        score_batch(tiny_lm, [one], method_of("gradsae"), [NEXT_TOKEN], make_batch())


def test_fvu_compares_with_what_is_written(tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    """A transcoder whose skip connection is the whole of a linear MLP leaves nothing unexplained."""
    sae = make_transcoder(skip=True)
    sae = replace(sae, w_dec_CD=torch.zeros_like(sae.w_dec_CD), b_dec_D=torch.zeros_like(sae.b_dec_D))
    one, batch = wire(tiny_lm, sae), make_batch()
    mlp, tallies = tiny_lm.model.get_submodule(WRITES), {WRITES: Tally()}
    mlp.forward = lambda hidden: hidden @ sae.w_skip_DD
    try:
        score_batch(tiny_lm, [one], method_of("attribution-patching"), [NEXT_TOKEN], batch, tallies=tallies)
    finally:
        del mlp.forward
    assert tallies[WRITES].fvu == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_the_gate_takes_a_transcoder(preset: str, tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    one, batch = wire(tiny_lm, make_transcoder(skip=True)), make_batch()
    assert 0 < median_norms(tiny_lm, [one], [batch])[WRITES] < 30
    report = run_gate(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], [batch], batch, bos=True, force=True)
    assert {check.name for check in report.failures} <= {"fvu", "l0"}, "a random transcoder reconstructs badly"


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_ablation_takes_the_latent_out_of_what_is_written(
    preset: str, tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    one, batch = wire(tiny_lm, make_transcoder(skip=True)), make_batch(TEXTS[:1], context_length=200)
    method = method_of(preset)
    (scored,) = next(iter(scored_windows(tiny_lm, [one], method, batch)))
    rows = scored.code.rows
    position = len(rows.indptr) // 2
    latent = int(rows.indices[rows.indptr[position]])
    removal = Removal(latent=latent, position_P=np.array([position]))
    effects = ablate(tiny_lm, scored, [removal], [NEXT_TOKEN])["next-token"]
    value = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch).values[WRITES]["next-token"][0]
    assert effects.value == pytest.approx(value, rel=1e-5)

    def change(hidden_1TD: Tensor) -> Tensor:
        changed = scored.seen_TD[None].clone()
        changed[0, position] -= rows.values[rows.indptr[position]] * one.sae.w_dec_CD[latent]
        return changed

    ids_1T = torch.from_numpy(batch.token_ids_BT)
    with torch.no_grad(), tiny_lm.site(WRITES).hook(tiny_lm.model, change):
        log_prob_TV = torch.log_softmax(tiny_lm.model(input_ids=ids_1T, use_cache=False).logits[0], -1)
    without = log_prob_TV[:-1].gather(1, ids_1T[0, 1:, None]).sum().item()
    assert effects.drop_K[0] == pytest.approx(value - without, rel=1e-2, abs=1e-4)


def test_only_the_scored_positions_have_rows(tiny_lm: LanguageModel, make_batch: MakeBatch) -> None:
    batch = make_batch()
    scores = score_batch(tiny_lm, [wire(tiny_lm, make_transcoder())], method_of("gradsae"), [NEXT_TOKEN], batch)
    assert len(scores.sites[WRITES].indptr) == scored_positions(batch).sum() + 1
