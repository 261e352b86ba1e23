"""The gate stops a run whose SAE does not belong where it was put, and lets a sound one through."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gradsae_fast.config import SaeConfig, ScoreConfig
from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.errors import GateError
from gradsae_fast.gate import Check, GateReport, check_sae, median_norms, run_gate
from gradsae_fast.method import resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.sites import Wiring
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.records import Batch
from gradsae_fast.sae.canonical import Threshold
from gradsae_fast.score import SitedSae


@pytest.fixture
def batch(tiny_tokenizer: PreTrainedTokenizerFast) -> Batch:
    texts = ["The state of the union is strong.", "Peace abroad and work at home.", "Taxes fall, farms grow."]
    documents = tokenize(open_corpus(texts), tiny_tokenizer, TokenRules(prepend_bos=True, bos_id=0))
    windows = [window for document in documents for window in cut_windows(document, 0, context_length=64, overlap=0)]
    return batch_windows(windows, tokens_per_batch=1000)[0]


def perfect(lm: LanguageModel, folder: Any, batch: Batch, **facts: Any) -> SitedSae:
    """An SAE that reconstructs exactly: each latent copies one direction of the hidden state, or its negative."""
    one = load_sited_saes(lm, [SaeConfig(path=str(folder))])[0]
    eye_DD = torch.eye(one.sae.d_in)
    both_CD = torch.cat([eye_DD, -eye_DD])
    rule = Threshold(threshold_C=torch.zeros(len(both_CD)))
    sae = replace(
        one.sae,
        w_enc_CD=both_CD,
        w_dec_CD=both_CD,
        bias_C=torch.zeros(len(both_CD)),
        b_dec_D=torch.zeros(one.sae.d_in),
        rule=rule,
        facts=replace(one.sae.facts, **facts),
    )
    return replace(one, sae=sae)


def run(lm: LanguageModel, one: SitedSae, batch: Batch, **options: Any) -> GateReport:
    objectives = [Objective(name="next-token")]
    method = resolve_method(ScoreConfig())
    return run_gate(lm, [one], method, objectives, [batch], batch, **{"bos": True, **options})


def test_a_sound_run_passes_every_check(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    report = run(tiny_lm, perfect(tiny_lm, write_sae(), batch, published_l0=24.0, published_fvu=0.01), batch)
    assert [check.name for check in report.checks] == [
        "site",
        "bos",
        "fvu",
        "l0",
        "batch invariance",
        "dense autograd of next-token",
    ]
    assert not report.failures


def place_of_run(lm: LanguageModel, one: SitedSae, batch: Batch, site: str, facts: dict[str, Any]) -> Check:
    """What the gate says of the place of an SAE at this site, whose metadata says this."""
    moved = replace(one, wiring=Wiring.at(lm.site(site)), sae=replace(one.sae, facts=replace(one.sae.facts, **facts)))
    checks = check_sae(lm, moved, [batch], bos=True)
    return next(check for check in checks if check.name == "site")


def test_an_sae_at_another_site_than_its_metadata_says_stops_the_run(
    tiny_lm: LanguageModel, write_sae: Any, batch: Batch
) -> None:
    one = perfect(tiny_lm, write_sae(), batch, published_l0=24.0, site="model.layers.2")
    with pytest.raises(
        GateError, match=r"  site at model\.layers\.1: the SAE's metadata says model\.layers\.2; .* Leave --site out"
    ):
        run(tiny_lm, one, batch)
    forced = run(tiny_lm, one, batch, force=True)
    assert [check.name for check in forced.failures] == ["site"]


def test_a_transcoder_that_reads_elsewhere_than_its_metadata_says_stops_the_run(
    tiny_lm: LanguageModel, write_sae: Any, batch: Batch
) -> None:
    one = perfect(tiny_lm, write_sae(), batch, reads="model.layers.0")
    with pytest.raises(
        GateError, match=r"reads at model\.layers\.1: the SAE's metadata says model\.layers\.0; .*--reads"
    ):
        run(tiny_lm, one, batch)


@pytest.mark.parametrize(
    ("site", "facts"),
    [
        ("model.layers.1", {"site": None, "hook_name": "blocks.1.hook_resid_post"}),
        ("model.layers.1", {"site": None, "hook_name": "blocks.2.hook_resid_pre"}),
        ("model.layers.1.mlp.input", {"site": "model.layers.1.post_attention_layernorm"}),
    ],
)
def test_one_place_under_two_names_is_the_same_site(
    tiny_lm: LanguageModel, write_sae: Any, batch: Batch, site: str, facts: dict[str, Any]
) -> None:
    one = load_sited_saes(tiny_lm, [SaeConfig(path=str(write_sae()))])[0]
    check = place_of_run(tiny_lm, one, batch, site, facts)
    assert check.passed, check


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"site": None, "hook_name": None}, "the SAE's metadata names none"),
        (
            {"site": "transformer.h.7", "hook_name": None},
            "the SAE's metadata says transformer.h.7, which is no site of this model",
        ),
        ({"site": None, "hook_name": "blocks.0.hook_resid_pre"}, ".*, which is no site of this model"),
    ],
)
def test_metadata_that_names_no_site_of_this_model_stops_nothing(
    tiny_lm: LanguageModel, write_sae: Any, batch: Batch, facts: dict[str, Any], found: str
) -> None:
    one = load_sited_saes(tiny_lm, [SaeConfig(path=str(write_sae()))])[0]
    check = place_of_run(tiny_lm, one, batch, "model.layers.2", facts)
    assert check.passed
    assert re.fullmatch(found, check.found)


def test_integrated_gradients_must_add_up(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    (one,) = load_sited_saes(tiny_lm, [SaeConfig(path=str(write_sae(normalize_activations="layer_norm")))])
    objectives = [Objective(name="next-token")]
    for steps, passed in ((1, False), (64, True)):
        method = resolve_method(ScoreConfig(path_steps=steps))
        report = run_gate(tiny_lm, [one], method, objectives, [batch], batch, bos=True, force=True)
        check = report.checks[-1]
        assert check.name == "completeness of next-token"
        assert check.passed is passed, check.found
        assert check.remedy == f"Raise path_steps, which is {steps}."


def test_a_window_without_a_target_does_not_stop_the_gate(
    tiny_lm: LanguageModel, write_sae: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = tokenize(
        open_corpus(["We must build roads", "x"]), tiny_tokenizer, TokenRules(prepend_bos=False, bos_id=0)
    )
    windows = [window for document in documents for window in cut_windows(document, 0, context_length=64, overlap=0)]
    assert min(len(window.token_ids) for window in windows) == 1
    batch = batch_windows(windows, tokens_per_batch=1000)[0]
    (one,) = load_sited_saes(tiny_lm, [SaeConfig(path=str(write_sae()))])
    report = run(tiny_lm, one, batch, force=True)
    assert all(check.passed for check in report.checks if check.name.startswith("dense autograd")), report


def test_an_sae_that_explains_nothing_stops_the_run(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = load_sited_saes(tiny_lm, [SaeConfig(path=str(write_sae()))])[0]
    wrong = replace(one, sae=replace(one.sae, w_dec_CD=one.sae.w_dec_CD.flip(1).contiguous()))
    with pytest.raises(GateError, match=r"(?s)fvu at model\.layers\.1: FVU .*expected at most 0\.9.*--force"):
        run(tiny_lm, wrong, batch)


def test_an_l0_far_from_the_published_one_stops_the_run(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = perfect(tiny_lm, write_sae(), batch, published_l0=3.0)
    with pytest.raises(GateError, match=r"l0 at .*: L0 2\d\.\d; expected 1\.2 to 7\.5 \(published: 3\.0\)"):
        run(tiny_lm, one, batch)


def test_a_bos_against_the_training_stops_the_run(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = perfect(tiny_lm, write_sae(), batch, prepend_bos=False)
    with pytest.raises(GateError, match=r"bos at .*: a BOS in front; expected as in the SAE's training \(no BOS\)"):
        run(tiny_lm, one, batch)


def test_several_sites_are_also_checked_together(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    sites = [
        load_sited_saes(tiny_lm, [SaeConfig(path=str(write_sae(name=str(layer), layer=layer)))])[0] for layer in (1, 2)
    ]
    method, objectives = resolve_method(ScoreConfig()), [Objective(name="next-token")]
    report = run_gate(tiny_lm, sites, method, objectives, [batch], batch, bos=True, force=True)
    together = [check for check in report.checks if check.name == "sites together"]
    assert [check.passed for check in together] == [True, True]


def test_force_goes_on_and_is_recorded(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    report = run(tiny_lm, perfect(tiny_lm, write_sae(), batch, published_l0=3.0), batch, force=True)
    assert [check.name for check in report.failures] == ["l0"]
    assert report.to_json()["forced"] is True


def test_a_wrong_effective_decoder_row_is_noticed(
    tiny_lm: LanguageModel, write_sae: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.sparse_code.scale_gradient", lambda _sae, grad_ND, _stats: 1.2 * grad_ND)
    with pytest.raises(GateError, match="dense autograd"):
        run(tiny_lm, perfect(tiny_lm, write_sae(), batch), batch)


def test_median_norms_ignore_masked_tokens(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = perfect(tiny_lm, write_sae(), batch)
    median = median_norms(tiny_lm, [one], [batch])[one.site.path]
    assert 0 < median < 1e3
