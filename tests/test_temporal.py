"""Scores through a temporal SAE, whose code of a token depends on the tokens before it in the same window.

Letters: T tokens of one window, N scored tokens of a batch, D width, C latents.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsae_fast import open_scores, rank_latents
from gradsae_fast.ablate import Removal, ScoredWindow, ablate, scored_windows
from gradsae_fast.certify import Sampling, certify
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.config import ExtractConfig, ModelConfig, SaeConfig, ScoreConfig
from gradsae_fast.errors import ConfigError, SaeError
from gradsae_fast.exact import exact_dense
from gradsae_fast.experiment.subject import Setting
from gradsae_fast.experiment.subject import load_subject as load_experiment
from gradsae_fast.extract import extract
from gradsae_fast.gate import check_sae, run_gate
from gradsae_fast.jacobian.block import DictionaryPair, Point
from gradsae_fast.method import Method, resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.patching import output_hook
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.quality import Tally
from gradsae_fast.records import Array, Batch, TokenMask
from gradsae_fast.score import SitedSae, score_batch
from gradsae_fast.sparse_code import reconstruct
from gradsae_fast.synthetic.subject import load_subject as load_synthetic
from tests.conftest import LATENTS, WIDTH
from tests.influences import TEXTS, MakeBatch, dense, oracle
from tests.temporal import published, temporal_weights, write_temporal

NEXT_TOKEN = Objective(name="next-token")
SITE = "model.layers.1"
METADATA = {"hf_hook_name": SITE, "prepend_bos": True}
OPTIONS: list[dict[str, Any]] = [
    {"kval_topk": 6},
    {"normalize_activations": "layer_norm"},
    {"kval_topk": 6, "normalize_activations": "constant_norm_rescale"},
    {"kval_topk": 6, "normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.3},
    {"kval_topk": 6, "tied": False, "num_layers": 2, "apply_b_dec_to_input": False},
]


def write(folder: Path, *, tied: bool = True, num_layers: int = 1, **options: Any) -> Path:
    """A temporal SAE for the tiny model."""
    weights = temporal_weights(WIDTH, LATENTS, tied=tied, num_layers=num_layers)
    return write_temporal(folder / "temporal", weights, metadata=METADATA, **options)


def sited(lm: LanguageModel, folder: Path, **options: Any) -> SitedSae:
    return replace(load_sited_saes(lm, [SaeConfig(path=str(folder))])[0], **options)


def method_of(preset: str, **options: Any) -> Method:
    return resolve_method(ScoreConfig(preset=preset, objectives=("next-token",), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching", "paper"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_equal_autograd_through_the_dense_sae(
    options: dict[str, Any], preset: str, tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    one, method, batch = sited(tiny_lm, write(tmp_path, **options), sink_norm=26.0), method_of(preset), make_batch()
    assert len(batch.windows) > len(TEXTS), "one document should take several windows"
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    assert np.abs(expected_NC).max() > 1e-2
    assert 0 < ((scores.mask_N & TokenMask.NORM) != 0).mean() < 0.5
    np.testing.assert_allclose(dense(scores.sites[SITE], "next-token"), expected_NC, rtol=2e-3, atol=1e-4)


def by_hand(
    lm: LanguageModel, token_ids: Array, change: Callable[[Tensor, Tensor], Tensor], **options: Any
) -> tuple[Tensor, Tensor]:
    """Latents of a plain hook with the published formula [T, C], and the text's log-likelihood.

    `change` makes what the network sees, of the hidden state and of what the formula reconstructs.
    """
    weights, kept = temporal_weights(WIDTH, LATENTS), list[Tensor]()

    def hook(hidden_1TD: Tensor) -> Tensor:
        code_TC, predicted_TD, _ = published(weights, hidden_1TD[0].detach(), **options)
        kept.append(code_TC.requires_grad_())
        decoded_TD = kept[0] @ weights["W_dec"].double() + predicted_TD + weights["b_dec"].double()
        return change(hidden_1TD[0], decoded_TD)[None].float()

    ids_T = torch.from_numpy(token_ids.astype(np.int64))
    with output_hook(lm.model.get_submodule(SITE), hook):
        log_prob_TV = torch.log_softmax(lm.model(input_ids=ids_T[None], use_cache=False).logits[0], -1)
    return kept[0], log_prob_TV[:-1].gather(1, ids_T[1:, None]).sum()


@pytest.mark.parametrize("preset", ["paper", "attribution-patching"])
def test_scores_of_a_batch_are_those_of_each_text_by_the_published_formula(
    preset: str, tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    folder = write(tmp_path, kval_topk=6)
    one, batch = sited(tiny_lm, folder), make_batch(bos=False, context_length=200)
    found = score_batch(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], batch)

    def see(hidden_TD: Tensor, decoded_TD: Tensor) -> Tensor:
        return decoded_TD if preset == "paper" else decoded_TD + (hidden_TD - decoded_TD).detach()

    parts = [by_hand(tiny_lm, window.token_ids, see, k=6) for window in batch.windows]
    latents_NC = torch.cat([latents_TC for latents_TC, _ in parts]).detach()
    grad_NC = torch.cat([torch.autograd.grad(value, latents_TC)[0] for latents_TC, value in parts])
    scores = found.sites[SITE]
    activations_NC = dense(replace(scores, projections={"one": np.ones_like(scores.activation)}), "one")
    np.testing.assert_allclose(activations_NC, latents_NC, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(dense(scores, "next-token"), latents_NC * grad_NC, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found.values[SITE]["next-token"], [value.item() for _, value in parts], rtol=1e-4)


def test_a_window_scores_the_same_alone_and_beside_others(
    tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    one, method, batch = sited(tiny_lm, write(tmp_path, kval_topk=6)), method_of("gradsae"), make_batch(TEXTS * 2)
    assert len(batch.windows) >= 8
    together = dense(score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch).sites[SITE], "next-token")
    alone = []
    for window in batch.windows:
        single = Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))
        alone.append(dense(score_batch(tiny_lm, [one], method, [NEXT_TOKEN], single).sites[SITE], "next-token"))
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_patch_texts_and_paths_leave_the_prediction_of_the_text(
    preset: str, steps: int, tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    rows = [{"text": text, "other": " ".join(reversed(text.split(" ")))} for text in ("one two, two", "we are we not")]
    one, batch = sited(tiny_lm, write(tmp_path, kval_topk=6)), make_batch(rows, patch_column="other")
    method = replace(method_of(preset, path_steps=steps), patch=True)
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    assert np.abs(expected_NC).max() > 1e-2
    np.testing.assert_allclose(dense(scores.sites[SITE], "next-token"), expected_NC, rtol=2e-3, atol=2e-4)


def removals_of(scored: ScoredWindow) -> list[Removal]:
    """Single pairs all over the window, and the busiest latent at all its positions."""
    rows = scored.code.rows
    token_Z = np.repeat(np.arange(len(rows.indptr) - 1), rows.indptr.diff().numpy())
    latent_Z = rows.indices.numpy()
    busiest = int(np.bincount(latent_Z).argmax())
    pairs = [Removal(latent=int(latent_Z[z]), position_P=token_Z[z : z + 1]) for z in range(0, len(token_Z), 19)]
    return [*pairs, Removal(latent=busiest, position_P=token_Z[latent_Z == busiest])]


@pytest.mark.parametrize("preset", ["paper", "attribution-patching"])
def test_a_removed_latent_changes_its_own_positions_alone(
    preset: str, tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    folder = write(tmp_path, kval_topk=6)
    one, batch = sited(tiny_lm, folder), make_batch(TEXTS[1:], bos=False, context_length=200)
    w_dec_CD = temporal_weights(WIDTH, LATENTS)["W_dec"].double()
    (windows,) = scored_windows(tiny_lm, [one], method_of(preset), batch)
    for scored in windows:
        latents_TC, _ = by_hand(tiny_lm, scored.window.token_ids, lambda _, decoded_TD: decoded_TD, k=6)
        if preset == "paper":
            torch.testing.assert_close(reconstruct(one.sae, scored.code), scored.seen_TD)
        removals = removals_of(scored)
        effects = ablate(tiny_lm, scored, removals, [NEXT_TOKEN])["next-token"]
        values = []
        for removal in [Removal(latent=0, position_P=np.zeros(0, np.int64)), *removals]:
            gone_TC = torch.zeros_like(latents_TC)
            gone_TC[removal.position_P, removal.latent] = latents_TC[removal.position_P, removal.latent].detach()

            def see(hidden_TD: Tensor, decoded_TD: Tensor, gone_TC: Tensor = gone_TC) -> Tensor:
                return (decoded_TD if preset == "paper" else hidden_TD) - gone_TC @ w_dec_CD

            values.append(by_hand(tiny_lm, scored.window.token_ids, see, k=6)[1].item())
        assert effects.value == pytest.approx(values[0], rel=1e-4)
        expected = values[0] - np.array(values[1:])
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(effects.drop_K, expected, rtol=5e-3, atol=5e-4)


def test_the_gate_measures_whole_windows_and_passes(
    tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    one, batch = sited(tiny_lm, write(tmp_path, kval_topk=6), sink_norm=26.0), make_batch(context_length=200)
    tallies = {SITE: Tally()}
    score_batch(tiny_lm, [one], method_of("attribution-patching"), [NEXT_TOKEN], batch, tallies=tallies)
    found = {check.name: check.found for check in check_sae(tiny_lm, one, [batch], bos=True)}
    assert found["fvu"] == f"FVU {tallies[SITE].fvu:.3f}"
    assert found["l0"] == f"L0 {tallies[SITE].l0:.1f}"
    report = run_gate(tiny_lm, [one], method_of("gradsae"), [NEXT_TOKEN], [batch], batch, bos=True)
    assert {check.name for check in report.checks} >= {"batch invariance", "dense autograd of next-token"}


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_a_hidden_state_that_is_not_finite_poisons_no_other_window(
    preset: str, tiny_lm: LanguageModel, tmp_path: Path, make_batch: MakeBatch
) -> None:
    one, batch = sited(tiny_lm, write(tmp_path, kval_topk=6)), make_batch(context_length=200)
    clean = score_batch(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], batch)

    def poison(hidden_BTD: Tensor) -> Tensor:
        poisoned_BTD = hidden_BTD.clone()
        poisoned_BTD[1, 5, 0] = float("nan")
        return poisoned_BTD

    with output_hook(tiny_lm.model.get_submodule("model.layers.0"), poison):
        kept = score_batch(tiny_lm, [one], method_of(preset), [NEXT_TOKEN], batch, nonfinite="keep")
    first, last = np.cumsum([window.num_scored for window in batch.windows[:2]])
    bad_N = (kept.mask_N & TokenMask.NONFINITE) != 0
    assert bad_N[first + 5 : last].all()
    assert not bad_N[:first].any()
    assert not bad_N[last:].any()
    found_NC, clean_NC = (dense(scores.sites[SITE], "next-token") for scores in (kept, clean))
    assert np.isfinite(found_NC).all()
    for others in (slice(None, first), slice(last, None)):
        np.testing.assert_allclose(found_NC[others], clean_NC[others], rtol=2e-3, atol=1e-4)


def test_a_corpus_is_extracted_ranked_measured_and_certified(
    configure: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    sae = {"path": str(write(tmp_path, kval_topk=6))}
    config = configure(sae=sae, corpus={"max_documents": 5}, run={"force": False})
    extract(config)
    store = open_scores(config.store.path)
    assert store.is_complete
    assert store.identity["saes"][SITE]["kernels"].startswith("temporal torch; ")
    assert rank_latents(store).num_rows == 20
    prepared, _ = reopen(store)
    report = exact_dense(prepared, share=0.4)
    assert report.num_removals > 0
    assert report.value_deviation < 1e-4
    certificate = certify(store.path, sampling=Sampling(pairs=20, documents=2, latents_per_document=5))
    assert min(len(column) for column in certificate.samples.values()) >= 30


def test_what_works_on_single_tokens_refuses_a_temporal_sae_and_says_why(
    tiny_lm: LanguageModel, tiny_model_folder: Path, configure: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    folder = write(tmp_path, kval_topk=6)
    setting = Setting(
        model=ModelConfig(path=str(tiny_model_folder), device="cpu"), sae=SaeConfig(path=str(folder)), questions=""
    )
    with pytest.raises(ConfigError, match=r"is a temporal SAE.*one token at a time"):
        load_experiment(setting)
    sae = sited(tiny_lm, folder).sae
    with pytest.raises(SaeError, match=r"is a temporal SAE.*no token has a block of its own"):
        DictionaryPair(lower=sae, upper=sae, path=cast("Any", None), point=Point.HIDDEN)
    config = configure(sae={"path": str(folder)}, corpus={"max_documents": 2})
    extract(config)
    with pytest.raises(SaeError, match=r"is a temporal SAE.*a made activation has none"):
        load_synthetic(open_scores(config.store.path), None, None, None, "cpu")
