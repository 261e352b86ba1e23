"""Sparse scores of a batch equal what dense autograd, finite differences and exact ablation say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast.config import SaeConfig, ScoreConfig
from gradsae_fast.errors import ScoreError
from gradsae_fast.method import resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.patching import output_hook
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.quality import Tally
from gradsae_fast.records import Batch, TokenMask
from gradsae_fast.reference import objective_value
from gradsae_fast.sae.canonical import without_latents
from gradsae_fast.score import SitedSae, score_batch
from gradsae_fast.sparse_code import chosen_rows, encode, project_gradient, reconstruct
from tests.influences import TEXTS, MakeBatch, dense, oracle

NEXT_TOKEN = Objective(name="next-token")
FAMILIES = [
    ("standard", {}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("gated", {"apply_b_dec_to_input": True}),
    ("jumprelu", {"apply_b_dec_to_input": True}),
    ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"normalize_activations": "layer_norm", "apply_b_dec_to_input": True}),
    ("abstopk", {}),
    ("matching_pursuit", {"max_iterations": 8, "stop_on_duplicate_support": False}),
]


def sited(lm: LanguageModel, folder: Path, **options: Any) -> SitedSae:
    one = load_sited_saes(lm, [SaeConfig(path=str(folder))])[0]
    return replace(one, **options)


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching", "paper"])
@pytest.mark.parametrize(("architecture", "options"), FAMILIES, ids=lambda value: str(value))
def test_scores_equal_autograd_through_the_dense_sae(
    architecture: str,
    options: dict[str, Any],
    preset: str,
    tiny_lm: LanguageModel,
    write_sae: Any,
    make_batch: MakeBatch,
) -> None:
    one = sited(tiny_lm, write_sae(architecture, **options), sink_norm=26.0)
    method = resolve_method(ScoreConfig(preset=preset, objectives=("next-token",)))  # type: ignore[arg-type]
    batch = make_batch()
    assert len(batch.windows) > len(TEXTS), "one document should take several windows"
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    assert np.abs(expected_NC).max() > 1e-3
    assert 0 < ((scores.mask_N & TokenMask.NORM) != 0).mean() < 0.5
    np.testing.assert_allclose(dense(scores.sites[one.site.path], "next-token"), expected_NC, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["continuation", "continuation-prob", "top-token:logit", "top-token:logprob", "top-token:prob", "entropy"]
)
def test_every_objective_equals_its_plain_transcription(
    name: str, tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig(objectives=(name,)))
    objective = Objective(name=name)
    rows = [{"q": text, "a": answer} for text, answer in zip(TEXTS, [" yes", " no", " we will", " it is"], strict=True)]
    batch = make_batch(rows, prompt_column="q", answer_column="a", context_length=200)
    scores = score_batch(tiny_lm, [one], method, [objective], batch, chunk=3)
    found_NC = dense(scores.sites[one.site.path], name)
    np.testing.assert_allclose(found_NC, oracle(tiny_lm, one, method, objective, batch), rtol=2e-3, atol=1e-6)


def test_logit_difference_reads_the_two_tokens_of_the_record(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    objective = Objective(name="logit-diff")
    method = resolve_method(ScoreConfig(objectives=("logit-diff",)))
    rows = [{"text": text, "y1": " people", "y2": " world"} for text in TEXTS]
    batch = make_batch(rows, contrast_columns=("y1", "y2"), context_length=200)
    scores = score_batch(tiny_lm, [one], method, [objective], batch)
    found_NC = dense(scores.sites[one.site.path], "logit-diff")
    np.testing.assert_allclose(found_NC, oracle(tiny_lm, one, method, objective, batch), rtol=2e-3, atol=1e-6)


def test_an_objective_may_be_any_function_of_the_logits(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    def margin(logits_BTV: torch.Tensor, _ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        top_BT2 = logits_BTV.topk(2).values
        return (top_BT2[..., 0] - top_BT2[..., 1])[mask_BT].sum()

    one = sited(tiny_lm, write_sae())
    objective = Objective(name="margin", function=margin)
    method = resolve_method(ScoreConfig(objectives=("margin",)), ("margin",))
    batch = make_batch()
    scores = score_batch(tiny_lm, [one], method, [objective], batch)
    found_NC = dense(scores.sites[one.site.path], "margin")
    np.testing.assert_allclose(found_NC, oracle(tiny_lm, one, method, objective, batch), rtol=2e-3, atol=2e-5)


def test_probability_and_log_probability_rank_alike_inside_one_example(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    names = ("top-token:prob", "top-token:logprob")
    method = resolve_method(ScoreConfig(objectives=names))
    batch = make_batch(TEXTS[:1], context_length=200)
    scores = score_batch(tiny_lm, [one], method, [Objective(name=name) for name in names], batch)
    by_prob, by_logprob = (dense(scores.sites[one.site.path], name) for name in names)
    scale = by_prob.sum() / by_logprob.sum()
    assert 0 < scale < 1
    np.testing.assert_allclose(by_prob, scale * by_logprob, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_scores_do_not_depend_on_batch_mates_or_padding(
    preset: str, tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig(preset=preset))  # type: ignore[arg-type]
    batch = make_batch()
    together = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    alone = [
        score_batch(
            tiny_lm,
            [one],
            method,
            [NEXT_TOKEN],
            Batch(windows=(window,), token_ids_BT=np.pad(window.token_ids, (0, padding))[None].astype(np.int64)),
        )
        for padding, window in enumerate(batch.windows)
    ]
    parts = np.concatenate([dense(scores.sites[one.site.path], "next-token") for scores in alone])
    np.testing.assert_allclose(dense(together.sites[one.site.path], "next-token"), parts, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(together.mask_N, np.concatenate([scores.mask_N for scores in alone]))


def test_several_sites_in_one_run_equal_one_run_each(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    layers = [sited(tiny_lm, write_sae(name=f"sae{layer}", layer=layer, seed=layer)) for layer in (0, 2, 3)]
    mlp_folder = write_sae(name="mlp", metadata={"hook_name": "blocks.1.hook_mlp_out"})
    sites = [*layers, sited(tiny_lm, mlp_folder)]
    batch = make_batch()
    for preset in ("gradsae", "attribution-patching"):
        method = resolve_method(ScoreConfig(preset=preset))
        together = score_batch(tiny_lm, sites, method, [NEXT_TOKEN], batch)
        for one in sites:
            alone = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
            path = one.site.path
            np.testing.assert_allclose(
                dense(together.sites[path], "next-token"), dense(alone.sites[path], "next-token"), rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize(("architecture", "options"), FAMILIES, ids=lambda value: str(value))
def test_influences_add_up_to_the_gradient_along_the_decoded_latents(
    architecture: str, options: dict[str, Any], tiny_lm: LanguageModel, write_sae: Any
) -> None:
    sae = sited(tiny_lm, write_sae(architecture, **options)).sae
    generator = torch.Generator().manual_seed(3)
    hidden_ND, grad_ND = (torch.randn(17, sae.d_in, generator=generator) for _ in range(2))
    code = encode(sae, hidden_ND)
    influence_Z = code.rows.values * project_gradient(sae, code, grad_ND)
    row_Z = torch.arange(17).repeat_interleave(code.rows.indptr.diff())
    summed_N = torch.zeros(17).index_add(0, row_Z, influence_Z)
    constant_ND = without_latents(sae, torch.zeros_like(hidden_ND), code.stats)
    expected_N = (grad_ND * (reconstruct(sae, code) - constant_ND)).sum(1)
    torch.testing.assert_close(summed_N, expected_N, rtol=1e-3, atol=1e-4)


def test_the_gradient_equals_central_finite_differences(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig(preset="attribution-patching"))
    batch = make_batch(TEXTS[:1], context_length=200)
    window = batch.windows[0]
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch).sites[one.site.path]
    token = int(np.diff(scores.indptr).argmax())
    entries = range(scores.indptr[token], scores.indptr[token + 1])
    model = tiny_lm.model.double()
    try:
        for entry in list(entries)[:4]:
            row_D = one.sae.w_dec_CD[int(scores.indices[entry])].double()
            step = 1e-2  # the norm layers work in float32, whatever the model's dtype

            def value(shift: float, row_D: torch.Tensor = row_D) -> float:
                def change(hidden_BTD: torch.Tensor) -> torch.Tensor:
                    moved_BTD = hidden_BTD.clone()
                    moved_BTD[0, token] += shift * row_D
                    return moved_BTD

                with torch.no_grad(), output_hook(model.get_submodule(one.site.path), change):
                    logits_TV = model(input_ids=torch.from_numpy(batch.token_ids_BT), use_cache=False).logits[0]
                return objective_value(NEXT_TOKEN, logits_TV, window).item()

            difference = (value(step) - value(-step)) / (2 * step)
            assert scores.projections["next-token"][entry] == pytest.approx(difference, rel=5e-3, abs=1e-3)
    finally:
        tiny_lm.model.float()


def test_influence_is_exact_ablation_where_everything_above_is_linear(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae("topk"))
    direction_D = torch.randn(one.sae.d_in, generator=torch.Generator().manual_seed(5))
    batch = make_batch(TEXTS[:1], context_length=200)
    hidden_ND = torch.randn(batch.num_scored, one.sae.d_in, generator=torch.Generator().manual_seed(6))
    code = encode(one.sae, hidden_ND)
    influence_Z = code.rows.values * project_gradient(one.sae, code, direction_D.expand_as(hidden_ND))
    full = (reconstruct(one.sae, code) @ direction_D).sum()
    for entry in range(0, len(influence_Z), 7):
        values = code.rows.values.clone()
        values[entry] = 0.0
        ablated = (reconstruct(one.sae, replace(code, rows=code.rows._replace(values=values))) @ direction_D).sum()
        assert influence_Z[entry].item() == pytest.approx((full - ablated).item(), rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching", "paper"])
def test_integrated_gradients_equal_autograd_along_the_path(
    preset: str, tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae("gated", apply_b_dec_to_input=True), sink_norm=26.0)
    method = resolve_method(
        ScoreConfig(preset=preset, objectives=("next-token",), path_steps=4)  # type: ignore[arg-type]
    )
    batch = make_batch()
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    at_the_end_NC = oracle(tiny_lm, one, replace(method, path_steps=0), NEXT_TOKEN, batch)
    assert np.abs(expected_NC - at_the_end_NC).max() > 0.1 * np.abs(expected_NC).max()
    np.testing.assert_allclose(dense(scores.sites[one.site.path], "next-token"), expected_NC, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["top-token:logit", "top-token:prob"])
def test_a_path_is_about_the_token_that_its_end_predicts(
    name: str, tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one, objective = sited(tiny_lm, write_sae(normalize_activations="layer_norm")), Objective(name=name)
    batch = make_batch(TEXTS, context_length=200)
    method = resolve_method(ScoreConfig(objectives=(name,), path_steps=48))
    scores = score_batch(tiny_lm, [one], method, [objective], batch)
    found_NC = dense(scores.sites[one.site.path], name)
    np.testing.assert_allclose(found_NC, oracle(tiny_lm, one, method, objective, batch), rtol=5e-3, atol=1e-4)
    change = (scores.values[one.site.path][name] - scores.base_values[one.site.path][name]).sum()
    summed = found_NC[scores.mask_N == 0].sum()
    assert summed == pytest.approx(change, rel=0.05)


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_integrated_gradients_add_up_to_what_the_latents_change_together(
    preset: str, tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae(normalize_activations="layer_norm"))
    batch = make_batch(TEXTS[:3], context_length=24)
    window_N = np.repeat(np.arange(len(batch.windows)), [window.num_scored for window in batch.windows])
    gaps = []
    for steps in (2, 64):
        method = resolve_method(ScoreConfig(preset=preset, path_steps=steps))  # type: ignore[arg-type]
        scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
        values, bases = (each[one.site.path]["next-token"] for each in (scores.values, scores.base_values))
        counted_N = np.where(scores.mask_N == 0, 1.0, 0.0)
        summed_B = np.bincount(window_N, dense(scores.sites[one.site.path], "next-token").sum(1) * counted_N)
        assert np.median(np.abs(values - bases)) > 0.1
        gaps.append(np.abs(summed_B - (values - bases)).max() / np.abs(values - bases).max())
    assert gaps[1] < 0.02
    assert gaps[1] < gaps[0]


def test_a_path_ends_where_the_network_is_scored(tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch) -> None:
    one, batch = sited(tiny_lm, write_sae()), make_batch()
    for preset in ("gradsae", "attribution-patching"):
        values = []
        for steps in (0, 2):
            method = resolve_method(ScoreConfig(preset=preset, path_steps=steps))
            scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
            values.append(scores.values[one.site.path]["next-token"])
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def with_patches(make_batch: MakeBatch, **options: Any) -> Batch:
    """Texts whose patches have the same words, all but the first in the opposite order."""
    rows = []
    for text in TEXTS:
        first, *rest = text.split(" ")
        rows.append({"text": text, "other": " ".join([first, *reversed(rest)])})
    return make_batch(rows, patch_column="other", **options)


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
@pytest.mark.parametrize(("architecture", "options"), FAMILIES[::3], ids=lambda value: str(value))
def test_scores_against_a_patch_text_equal_autograd(
    architecture: str,
    options: dict[str, Any],
    preset: str,
    steps: int,
    tiny_lm: LanguageModel,
    write_sae: Any,
    make_batch: MakeBatch,
) -> None:
    one = sited(tiny_lm, write_sae(architecture, **options), sink_norm=26.0)
    config = ScoreConfig(preset=preset, objectives=("next-token",), path_steps=steps)  # type: ignore[arg-type]
    method = replace(resolve_method(config), patch=True)
    batch = with_patches(make_batch)
    assert len(batch.windows) > len(TEXTS), "one document should take several windows"
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    expected_NC = oracle(tiny_lm, one, method, NEXT_TOKEN, batch)
    assert np.abs(expected_NC).max() > 1e-2
    np.testing.assert_allclose(dense(scores.sites[one.site.path], "next-token"), expected_NC, rtol=2e-3, atol=2e-4)


def test_against_a_patch_a_latent_counts_by_how_much_more_active_it_is(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one, plain = sited(tiny_lm, write_sae()), resolve_method(ScoreConfig(preset="attribution-patching"))
    batch = with_patches(make_batch, context_length=200)
    patch_ids = batch.token_ids_BT.copy()
    for row, window in enumerate(batch.windows):
        assert window.patch_ids is not None
        patch_ids[row, : len(window.patch_ids)] = window.patch_ids
    found = score_batch(tiny_lm, [one], replace(plain, patch=True), [NEXT_TOKEN], batch)
    clean = score_batch(tiny_lm, [one], plain, [NEXT_TOKEN], batch)
    patch = score_batch(tiny_lm, [one], plain, [NEXT_TOKEN], Batch(windows=batch.windows, token_ids_BT=patch_ids))
    activations = []
    for scores in (found, clean, patch):
        sparse = scores.sites[one.site.path]
        activations.append(dense(replace(sparse, projections={"one": np.ones_like(sparse.activation)}), "one"))
    np.testing.assert_allclose(activations[0], activations[1] - activations[2], atol=1e-5)
    assert (activations[0] < 0).any()
    assert not activations[0][0].any(), "the first token of both texts is the BOS"
    np.testing.assert_allclose(found.values[one.site.path]["next-token"], clean.values[one.site.path]["next-token"])


def test_integrated_gradients_against_a_patch_add_up_to_what_patching_changes(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = replace(resolve_method(ScoreConfig(preset="attribution-patching", path_steps=16)), patch=True)
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], with_patches(make_batch, context_length=200))
    change = scores.values[one.site.path]["next-token"] - scores.base_values[one.site.path]["next-token"]
    summed = dense(scores.sites[one.site.path], "next-token")[scores.mask_N == 0].sum()
    assert np.abs(change).max() > 0.1
    assert summed == pytest.approx(change.sum(), rel=0.02)


def test_masked_positions_are_not_spliced_unless_all_are(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    batch = make_batch(TEXTS[:1], context_length=200)
    values = {}
    for splice in ("unmasked", "all"):
        method = resolve_method(ScoreConfig(splice=splice))
        scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
        values[splice] = scores.values[one.site.path]["next-token"][0]
    assert values["unmasked"] != pytest.approx(values["all"], rel=1e-4)


def test_without_a_bos_the_first_position_of_every_window_is_masked_as_a_sink(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig())
    batch = make_batch(bos=False)
    mask_N = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch).mask_N
    starts = np.cumsum([0, *(window.num_scored for window in batch.windows)])[:-1]
    begins = [start for start, window in zip(starts, batch.windows, strict=True) if window.num_context == 0]
    assert np.flatnonzero(mask_N).tolist() == sorted(begins)
    assert set(mask_N[begins]) == {TokenMask.FIRST}


def test_tally_gives_l0_and_fvu_of_unmasked_tokens(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig(preset="attribution-patching"))
    tallies = {one.site.path: Tally()}
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], make_batch(), tallies=tallies)
    sparse, tally = scores.sites[one.site.path], tallies[one.site.path]
    counted = scores.mask_N == 0
    assert tally.num_tokens == counted.sum()
    assert tally.l0 == pytest.approx(np.diff(sparse.indptr)[counted].mean())
    assert 0 < tally.fvu < 1.5


@pytest.mark.parametrize("nonfinite", ["raise", "keep"])
def test_nan_in_one_document_is_reported_or_masked_and_never_spreads(
    nonfinite: str, tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig())
    batch = make_batch(context_length=200)
    clean = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)

    def poison(hidden_BTD: torch.Tensor) -> torch.Tensor:
        poisoned_BTD = hidden_BTD.clone()
        poisoned_BTD[1, 5, 0] = float("nan")
        return poisoned_BTD

    with output_hook(tiny_lm.model.get_submodule("model.layers.0"), poison):
        if nonfinite == "raise":
            key = batch.windows[1].document.document.key
            with pytest.raises(ScoreError, match=rf"NaN or Inf in the hidden state.*{key!r}, token"):
                score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
            return
        kept = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch, nonfinite="keep")
    bad = (kept.mask_N & TokenMask.NONFINITE) != 0
    first = batch.windows[0].num_scored
    assert bad[first : first + batch.windows[1].num_scored].any()
    assert not bad[:first].any()
    found_NC, clean_NC = (dense(scores.sites[one.site.path], "next-token") for scores in (kept, clean))
    np.testing.assert_allclose(found_NC[:first], clean_NC[:first], rtol=1e-4, atol=1e-6)
    assert not found_NC[bad].any()


def test_no_scored_token_loses_its_next_token_to_the_edge_of_a_window(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig(preset="attribution-patching"))
    batch = make_batch(TEXTS[3:], context_length=20, overlap=4)
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch).sites[one.site.path]
    row_Z = np.repeat(np.arange(batch.num_scored), np.diff(scores.indptr))
    size_N = np.bincount(row_Z, np.abs(scores.projections["next-token"]), batch.num_scored)
    silent = np.flatnonzero((size_N == 0) & (np.diff(scores.indptr) > 0))
    last = [
        window for window in batch.windows if window.first_position + window.num_scored == window.document.num_tokens
    ]
    assert len(batch.windows) > 2
    assert len(silent) == len(last) == 1


def test_the_top_token_is_one_token_even_where_two_are_tied(
    tiny_lm: LanguageModel, write_sae: Any, make_batch: MakeBatch
) -> None:
    head = tiny_lm.model.lm_head.weight
    kept_VD = head.detach().clone()
    one = sited(tiny_lm, write_sae())
    objective = Objective(name="top-token:logit")
    method = resolve_method(ScoreConfig(objectives=("top-token:logit",)))
    batch = make_batch(TEXTS[:1], context_length=200)
    scores = score_batch(tiny_lm, [one], method, [objective], batch).sites[one.site.path]
    with torch.no_grad():
        logits_V = tiny_lm.model(input_ids=torch.from_numpy(batch.token_ids_BT), use_cache=False).logits[0, -1]
        order = logits_V.argsort(descending=True)
    assert dense(scores, "top-token:logit").any()
    try:
        with torch.no_grad():
            first, other = sorted((int(order[0]), int(order[-1])))
            head[first], head[other] = kept_VD[order[0]], kept_VD[order[0]]
        tied = score_batch(tiny_lm, [one], method, [objective], batch).sites[one.site.path]
        found_NC, alone_NC = (dense(each, "top-token:logit") for each in (tied, scores))
        np.testing.assert_allclose(found_NC, oracle(tiny_lm, one, method, objective, batch), rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(found_NC, alone_NC, rtol=2e-3, atol=1e-6)
    finally:
        head.data.copy_(kept_VD)


@pytest.mark.parametrize(
    ("architecture", "options"), [("jumprelu", {}), ("topk", {"normalize_activations": "layer_norm"})]
)
def test_the_code_of_chosen_rows_decodes_to_those_rows(
    architecture: str, options: dict[str, Any], tiny_lm: LanguageModel, write_sae: Any
) -> None:
    sae = sited(tiny_lm, write_sae(architecture, **options)).sae
    code = encode(sae, 3 * torch.randn(20, sae.d_in))
    rows_S = torch.tensor([3, 4, 17, 0])
    torch.testing.assert_close(reconstruct(sae, chosen_rows(code, rows_S)), reconstruct(sae, code)[rows_S])
    assert len(reconstruct(sae, chosen_rows(code, rows_S[:0]))) == 0
