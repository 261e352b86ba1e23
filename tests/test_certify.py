"""A certificate says of a real small store what a slow re-derivation says, the same each time, and refuses others."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import typer
from typer.testing import CliRunner

from gradsae_fast import open_scores, rank_latents, render
from gradsae_fast.certify import Sampling, certify
from gradsae_fast.certify.agreement import average_ranks, pearson, sign_agreement, slope, slope_interval, spearman
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.certify.sample import draw_documents, draw_samples
from gradsae_fast.cli_certify import certify as certify_verb
from gradsae_fast.compact import compact
from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.errors import ConfigError, IdentityError, ScoreError, StoreError
from gradsae_fast.exact import dense_latents
from gradsae_fast.extract import extract
from gradsae_fast.merge import merge
from gradsae_fast.model.patching import output_hook
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Batch, Window
from gradsae_fast.reference import objective_value
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.score import SitedSae
from gradsae_fast.sparse_code import reconstruct
from gradsae_fast.store.records.facts import facts_path
from gradsae_fast.store.sidecars.certificate import Certificate, read_certificate, write_certificate

Configure = Callable[..., ExtractConfig]
SMALL = Sampling(pairs=12, documents=3, latents_per_document=4, dense_share=0.5)


@pytest.fixture(scope="module")
def scored_once(
    tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The original of `store`."""
    path = tmp_path_factory.mktemp("scored") / "scores"
    tables: dict[str, Any] = {
        "model": {"path": str(tiny_model_folder)},
        "sae": {"path": str(tiny_sae_folder)},
        "corpus": {"path": str(tiny_corpus), "context_length": 64, "overlap": 16},
        "store": {"path": str(path)},
        "run": {"tokens_per_batch": 256, "threads": 1, "force": True},
    }
    extract(config_from_tables(tables))
    return path


@pytest.fixture
def store(scored_once: Path, tmp_path: Path) -> Path:
    """A store of the tiny corpus, its documents in several windows, that was moved since it was made."""
    return Path(shutil.copytree(scored_once, tmp_path / "moved"))


def samples_of(certificate: Certificate) -> list[dict[str, Any]]:
    columns = certificate.samples
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def windows_of(prepared: Prepared, key: str) -> list[Window]:
    for _, documents in read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules):
        for document in documents:
            if document.document.key == key:
                return prepared.cut(document, 0)
    raise AssertionError(key)


def slow_value(prepared: Prepared, one: SitedSae, window: Window, latent: int | None, position: int | None) -> float:
    """m of one window by a plain hook; a latent is 0 at one position of the document, or wherever it counts there."""
    alone = Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))

    def change(hidden_1TD: torch.Tensor) -> torch.Tensor:
        hidden_TD = hidden_1TD[0]
        sink_T = (hidden_TD.norm(dim=1) > one.sink_norm).numpy()
        unmasked_T = (position_masks(alone) == 0) & ~sink_T
        latents_TC = encode_dense(one.sae, hidden_TD)
        _, stats = normalise_input(one.sae, hidden_TD)
        error_TD = hidden_TD - decode_dense(one.sae, latents_TC, stats)
        for index in range(window.num_context, len(window.token_ids)):
            here = position is None or index - window.num_context + window.first_position == position
            if latent is not None and here and unmasked_T[index]:
                latents_TC[index, latent] = 0.0
        spliced_T1 = torch.from_numpy(unmasked_T & (prepared.method.splice != "none"))[:, None]
        return (decode_dense(one.sae, latents_TC, stats) + torch.where(spliced_T1, 0.0, error_TD))[None]

    lm = prepared.lm
    with torch.no_grad(), output_hook(lm.model.get_submodule(one.site.path), change):
        logits_TV = lm.model(input_ids=torch.from_numpy(alone.token_ids_BT), use_cache=False).logits[0]
    return objective_value(prepared.objectives[0], logits_TV, window).item()


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_every_sample_is_what_a_plain_hook_gives_and_what_the_store_says(preset: str, configure: Configure) -> None:
    config = configure(score={"preset": preset})
    extract(config)
    sampling = Sampling(pairs=6, documents=2, latents_per_document=3)
    certificate = certify(config.store.path, sampling=sampling, tokens_per_batch=300)
    store = open_scores(config.store.path)
    prepared, differences = reopen(store)
    assert not differences
    assert certificate.value_deviation < 1e-5
    one = prepared.sited[0]
    windows = {key: windows_of(prepared, key) for key in certificate.documents}
    whole = {key: sum(slow_value(prepared, one, window, None, None) for window in windows[key]) for key in windows}
    assert any(len(found) > 1 for found in windows.values())
    samples = samples_of(certificate)
    assert {sample["scores"] for sample in samples} == {"pairs", "documents"}
    for sample in samples:
        key, latent = sample["document"], sample["latent"]
        without = sum(slow_value(prepared, one, window, latent, sample["position"]) for window in windows[key])
        assert sample["exact"] == pytest.approx(whole[key] - without, rel=5e-3, abs=2e-4)
        if sample["scores"] == "documents":
            ranked = rank_latents(store, document=key, k=None).to_pylist()
            stored = next(row for row in ranked if row["latent"] == latent)
            assert sample["predicted"] == pytest.approx(stored["score"], rel=1e-5, abs=1e-7)
            assert sample["tokens"] == stored["num_active"]


def test_a_probability_is_ablated_as_a_probability(configure: Configure, tmp_path: Path) -> None:
    corpus = tmp_path / "qa.jsonl"
    rows = [{"q": f"The state of the union is {word}", "a": " strong."} for word in ("very", "now", "not")]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"path": str(corpus), "prompt_column": "q", "answer_column": "a"}
    names = ["continuation-prob", "continuation"]
    config = configure(corpus=columns, score={"objectives": names})
    extract(config)
    samples = samples_of(certify(config.store.path, sampling=Sampling(pairs=9, latents_per_document=48)))
    store = open_scores(config.store.path)
    log_p = {
        key: value
        for segment in store.segments
        for key, value in zip(segment.document_keys(), segment.objective_values()["continuation"], strict=True)
    }
    drops = {(s["document"], s["latent"]): s["exact"] for s in samples if s["objective"] == "continuation"}
    compared = 0
    for sample in samples:
        place = (sample["document"], sample["latent"])
        if sample["objective"] == "continuation-prob" and sample["scores"] == "documents":
            p = np.exp(log_p[place[0]])
            assert sample["exact"] == pytest.approx(p - p * np.exp(-drops[place]), rel=1e-3, abs=1e-3 * p)
            compared += 1
    assert compared > 20


def test_equal_seeds_give_equal_bytes_and_another_seed_another_sample(store: Path) -> None:
    path = facts_path(store, "certificate")
    found = []
    for seed in (3, 3, 4):
        certify(store, sampling=Sampling(pairs=6, documents=2, latents_per_document=2, seed=seed))
        found.append(path.read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]
    kept = read_certificate(open_scores(store))
    assert kept is not None
    assert kept.sampling["seed"] == 4
    assert kept.is_current(open_scores(store))


def test_a_sample_has_the_extremes_both_signs_and_enough_dense_latents(store: Path) -> None:
    opened = open_scores(store)
    sampling = Sampling(pairs=40, documents=2, latents_per_document=8, dense_share=0.5)
    drawn = draw_documents(opened, sampling)
    samples = list(draw_samples(opened, drawn, sampling))
    site = opened.sites[0]
    dense_C = dense_latents(opened, site, 0.5)
    counts = [segment.site(site).latent_stats(["count"]).columns["count"] for segment in opened.segments]
    counts_C = np.sum(counts, axis=0)
    counted = sum(segment.counted_tokens().sum() for segment in opened.segments)
    assert 0 < dense_C.sum() < len(dense_C)
    assert counts_C[dense_C].min() > 0.5 * counted >= counts_C[~dense_C].max()
    for document in drawn:
        ours = [sample for sample in samples if sample.document is document]
        whole = [sample for sample in ours if sample.scores == "documents"]
        assert sum(not sample.extra for sample in whole) == 8
        assert sum(sample.dense for sample in whole) >= 2
        assert sum(not sample.extra for sample in ours if sample.scores == "pairs") == 20
        assert len({sample.latent for sample in whole}) == len(whole)
        ranked = [row["score"] for row in rank_latents(opened, document=document.key, k=None).to_pylist()]
        main = [sample.predicted for sample in whole if not sample.extra]
        assert (min(main), max(main)) == pytest.approx((min(ranked), max(ranked)), rel=1e-5)
        assert all(bool(dense_C[sample.latent]) == sample.dense for sample in ours)
        assert all(sample.dense for sample in ours if sample.extra)


def test_latents_of_whole_documents_may_be_asked_to_fire_often(store: Path) -> None:
    opened = open_scores(store)

    def tokens_drawn(min_tokens: int) -> list[int]:
        sampling = Sampling(documents=2, latents_per_document=48, min_tokens=min_tokens)
        samples = draw_samples(opened, draw_documents(opened, sampling), sampling)
        return sorted(len(sample.position_P) for sample in samples if sample.scores == "documents")

    every = tokens_drawn(1)
    limit = every[len(every) // 2]
    assert every[0] < limit
    assert tokens_drawn(limit) == [count for count in every if count >= limit]


def test_agreements_are_of_all_dense_and_sparse_latents_apart(store: Path) -> None:
    certificate = certify(store, sampling=SMALL)
    samples = samples_of(certificate)
    members = {
        "all": lambda sample: not sample["extra"],
        "dense": lambda sample: sample["dense"],
        "sparse": lambda sample: not sample["dense"],
    }
    assert [(row.scores, row.latents) for row in certificate.agreements] == [
        (scores, latents) for scores in ("pairs", "documents") for latents in members
    ]
    for row in certificate.agreements:
        chosen = [s for s in samples if s["scores"] == row.scores and members[row.latents](s)]
        assert row.samples == len(chosen) > 2
        predicted, exact = ([sample[name] for sample in chosen] for name in ("predicted", "exact"))
        assert row.pearson == pytest.approx(scipy.stats.pearsonr(predicted, exact).statistic)
        assert row.spearman == pytest.approx(scipy.stats.spearmanr(predicted, exact).statistic)
        assert row.slope == pytest.approx(scipy.stats.linregress(predicted, exact).slope)
        assert row.slope_low is not None
        assert row.slope_high is not None
        assert row.slope_low <= row.slope_high


def test_several_sites_and_objectives_have_rows_of_their_own(
    configure: Configure, write_sae: Any, tmp_path: Path
) -> None:
    corpus = tmp_path / "short.jsonl"
    texts = ("The union is strong.", "Taxes fall, farms grow.", "Peace abroad and work at home.")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    saes = [{"path": str(write_sae(name=f"sae{layer}", layer=layer, seed=layer))} for layer in (0, 2)]
    config = configure(sae=saes, score={"objectives": ["next-token", "entropy"]}, corpus={"path": str(corpus)})
    extract(config)
    certificate = certify(config.store.path, sampling=Sampling(pairs=4, documents=2, latents_per_document=2))
    places = {(row.site, row.objective) for row in certificate.agreements}
    sites = ("model.layers.0", "model.layers.2")
    assert places == {(site, objective) for site in sites for objective in ("next-token", "entropy")}
    assert certificate.value_deviation < 1e-5


def test_a_function_of_the_callers_own_is_certified_with_that_function(configure: Configure) -> None:
    def margin(logits_BTV: torch.Tensor, _ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        top_BT2 = logits_BTV.topk(2).values
        return (top_BT2[..., 0] - top_BT2[..., 1])[mask_BT].sum()

    config = configure(score={"objectives": ["margin"]})
    extract(config, objectives={"margin": margin})
    certificate = certify(config.store.path, sampling=SMALL, objectives={"margin": margin})
    assert {row.objective for row in certificate.agreements} == {"margin"}
    with pytest.raises(ConfigError, match="margin"):
        certify(config.store.path, sampling=SMALL)


def test_another_model_is_refused_and_nothing_is_kept(configure: Configure, tmp_path: Path) -> None:
    model = tmp_path / "model"
    config = configure()
    shutil.copytree(config.model.path, model)
    config = configure(model={"path": str(model)})
    extract(config)
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}), encoding="utf-8")
    with pytest.raises(IdentityError, match=r"model\.digest[\s\S]*restore the model"):
        certify(config.store.path, sampling=SMALL)
    assert read_certificate(open_scores(config.store.path)) is None


def test_a_run_that_gives_other_values_than_the_store_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As other hardware might, if it were broken: the reconstruction comes out a little off.
    monkeypatch.setattr("gradsae_fast.ablate.reconstruct", lambda sae, code: reconstruct(sae, code) + 0.05)
    with pytest.raises(ScoreError, match=r"in this run, but .* in the store"):
        certify(store, sampling=SMALL)
    assert read_certificate(open_scores(store)) is None


def test_library_versions_may_differ_and_are_recorded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsae_fast.prepare.version", lambda name: "9.9" if name == "tokenizers" else version(name))
    told: list[str] = []
    certificate = certify(store, sampling=SMALL, on_message=told.append)
    assert certificate.differences == {"versions.tokenizers": (version("tokenizers"), "9.9")}
    assert "versions.tokenizers was" in told[0]


def test_a_store_merged_out_of_a_revised_one_cannot_be_measured_again(store: Path, tmp_path: Path) -> None:
    compact(store)
    merge([store], tmp_path / "merged")
    for path in (store, tmp_path / "merged"):
        with pytest.raises(StoreError, match="certify before `gradsae drop` and `gradsae compact`"):
            certify(path, sampling=SMALL)


def test_a_store_without_scores_cannot_be_certified(store: Path) -> None:
    for record in (store / "commits").iterdir():
        record.unlink()
    with pytest.raises(StoreError, match="no committed document"):
        certify(store, sampling=SMALL)


@pytest.mark.parametrize("options", [{"pairs": 0}, {"min_tokens": 0}, {"dense_share": 1.5}, {"seed": -1}])
def test_settings_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is"):
        Sampling(**options)


def test_the_verb_prints_a_table_or_json_and_keeps_the_certificate(store: Path) -> None:
    app = typer.Typer()
    app.command()(certify_verb)
    words = [str(store), "--pairs", "6", "--documents", "2", "--latents-per-document", "3"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0].split()[:5] == ["site", "objective", "scores", "latents", "samples"]
    assert "sparse" in shown.stdout
    assert "ablating" in shown.stderr
    answer = json.loads(CliRunner().invoke(app, [*words, "--format", "json"]).stdout)
    kept = read_certificate(open_scores(store))
    assert kept is not None
    assert answer["query"]["pairs"] == 6
    assert [row["spearman"] for row in answer["rows"]] == [row.spearman for row in kept.agreements]


def test_info_shows_the_certificate_and_says_when_it_is_no_longer_of_this_store(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_scores(store)
    render.show_certificate(opened)
    assert capsys.readouterr().out == ""
    certificate = certify(store, sampling=SMALL)
    render.show_certificate(opened)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(certificate.agreements)
    row = certificate.agreements[0]
    for words in (
        f"Spearman {row.spearman:.4g}",
        f"[{row.slope_low:.4g}, {row.slope_high:.4g}]",
        "pairs of all latents",
    ):
        assert words in lines[0]
    segment = next(iter(certificate.segments))
    write_certificate(store, dataclasses.replace(certificate, segments={segment: "another"}))
    render.show_certificate(opened)
    assert "run `gradsae certify` again" in capsys.readouterr().out


def test_statistics_equal_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for num in (2, 5, 80):
        x_N = generator.integers(0, 6, num).astype(float) + np.arange(num) / 7 * (num < 3)
        y_N = 0.3 * x_N + generator.standard_normal(num)
        np.testing.assert_allclose(average_ranks(x_N), scipy.stats.rankdata(x_N))
        assert pearson(x_N, y_N) == pytest.approx(scipy.stats.pearsonr(x_N, y_N).statistic)
        assert spearman(x_N, y_N) == pytest.approx(scipy.stats.spearmanr(x_N, y_N).statistic)
        assert slope(x_N, y_N) == pytest.approx(scipy.stats.linregress(x_N, y_N).slope)


def test_statistics_that_have_no_meaning_are_none() -> None:
    constant_N = np.full(7, 0.1)
    varied_N = np.arange(7.0)
    assert pearson(constant_N, varied_N) is pearson(varied_N, constant_N) is spearman(constant_N, varied_N) is None
    assert slope(constant_N, varied_N) is None
    assert slope_interval(constant_N, varied_N, 0) is None
    empty_N = np.zeros(0)
    assert [statistic(empty_N, empty_N) for statistic in (pearson, spearman, sign_agreement, slope)] == [None] * 4
    assert slope_interval(empty_N, empty_N, 0) is None
    assert sign_agreement(np.zeros(2), np.zeros(2)) is None


def test_signs_agree_where_they_are_equal_and_zero_against_a_number_is_no_agreement() -> None:
    assert sign_agreement(np.array([1.0, -2.0, 3.0, 0.0, 0.0]), np.array([4.0, -1.0, -1.0, 0.0, 5.0])) == 0.5


def test_the_slope_interval_covers_the_true_slope_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(25):
        x_N = generator.standard_normal(60)
        interval = slope_interval(x_N, 2 * x_N + generator.standard_normal(60), trial)
        assert interval is not None
        covered += interval[0] <= 2 <= interval[1]
    assert 20 <= covered <= 25


def test_a_certificate_of_integrated_gradients_says_that_they_are_no_removals(configure: Configure) -> None:
    config = configure(score={"path_steps": 2})
    extract(config)
    told: list[str] = []
    certify(config.store.path, sampling=SMALL, on_message=told.append)
    assert any("no estimates of a single removal" in message for message in told)
