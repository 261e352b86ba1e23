"""The end-to-end benchmark on a CPU: real sizes, right arithmetic, and nothing is called measured that was not."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.end_to_end import __main__ as command
from benchmarks.gpu.end_to_end import arithmetic, documents, measurement
from benchmarks.gpu.end_to_end.case import FULL, LITTLE, MOST, SMALL, Case, Outcome, State
from benchmarks.gpu.end_to_end.documents import random_batches
from benchmarks.gpu.end_to_end.lm_shape import GEMMA_2_2B, LLAMA_3_1_8B, TINY_GEMMA, LmShape
from benchmarks.gpu.end_to_end.measurement import Bench
from benchmarks.gpu.end_to_end.page import page, verdict
from benchmarks.gpu.end_to_end.random_model import config_of, random_lm, random_model
from benchmarks.gpu.end_to_end.room import shares_weights
from benchmarks.gpu.stopwatch import Stopwatch
from benchmarks.random_saes import random_saes
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.states import hidden_states
from gradsae_fast.score import score_batch
from gradsae_fast.sparse_code import encode

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CASE = SMALL[0]


@pytest.mark.parametrize(
    ("shape", "billions"), [(GEMMA_2_2B, 2.61), (LLAMA_3_1_8B, 8.03)], ids=lambda value: str(value)
)
def test_models_are_as_large_as_the_published_ones(shape: LmShape, billions: float) -> None:
    model = random_model(shape, torch.device("meta"), torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_configurations_are_those_of_the_published_models() -> None:
    gemma, llama = config_of(GEMMA_2_2B), config_of(LLAMA_3_1_8B)
    assert (gemma.attn_logit_softcapping, gemma.final_logit_softcapping, gemma.sliding_window) == (50.0, 30.0, 4096)
    assert (gemma.query_pre_attn_scalar, gemma.head_dim, gemma.tie_word_embeddings) == (256, 256, True)
    assert llama.rope_parameters["rope_type"] == "llama3"
    assert (llama.rope_parameters["factor"], llama.rope_parameters["rope_theta"]) == (8.0, 500_000.0)
    assert (llama.head_dim, llama.tie_word_embeddings) == (128, False)


@pytest.mark.parametrize("key", arithmetic.CALCULATED, ids=str)
def test_the_arithmetic_gives_the_calculated_table(key: tuple[str, int, int]) -> None:
    model, sites, latents = key
    expected, found = arithmetic.CALCULATED[key], arithmetic.calculate(Case(model=model, sites=sites, latents=latents))
    for part in ("forward", "backward", "encode", "project"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=0.03), part


def test_operations_of_weights_are_two_for_each_and_token() -> None:
    model = random_model(GEMMA_2_2B, torch.device("meta"), torch.bfloat16)
    in_layers = sum(p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight"))
    assert arithmetic.linear_flops(GEMMA_2_2B) == 2 * in_layers
    assert arithmetic.head_flops(GEMMA_2_2B) == 2 * model.lm_head.weight.numel()


def test_sites_are_spread_over_all_layers() -> None:
    for shape in (GEMMA_2_2B, LLAMA_3_1_8B):
        assert shape.site_layers(shape.layers) == tuple(range(shape.layers))
        assert shape.layers_above(1) == shape.layers / 2
        eight = shape.site_layers(8)
        assert len(set(eight)) == 8
        assert eight[0] < 3
        assert eight[-1] >= shape.layers - 3


def test_every_wanted_case_is_there_and_the_goals_come_first() -> None:
    for shape in (GEMMA_2_2B, LLAMA_3_1_8B):
        found = {(case.sites, case.latents) for case in FULL if case.model == shape.name}
        assert found == {(sites, c) for sites in (1, 8, shape.layers) for c in (16_384, 65_536, 131_072)}
    assert (FULL[0].sites, FULL[0].latents, FULL[0].most_time) == (1, 65_536, LITTLE)
    assert (FULL[1].sites, FULL[1].latents, FULL[1].most_time) == (26, 65_536, MOST)
    assert len({str(case) for case in FULL}) == len(FULL)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return random_lm(TINY_GEMMA, CPU, torch.bfloat16)


@pytest.mark.parametrize(("shared", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_thresholds_let_the_wanted_number_fire_at_every_site(
    lm: LanguageModel, shared: bool, dtype: torch.dtype
) -> None:
    batches = random_batches(documents.SMALL, TINY_GEMMA.vocabulary, 128)
    sites = [lm.site(f"model.layers.{layer}") for layer in range(3)]
    sited = random_saes(lm, sites, batches, num_latents=512, active=8, dtype=dtype, shared=shared)
    hidden = [hidden_states(lm, batch, [one.site for one in sited]) for batch in batches]
    assert [one.site.layer for one in sited] == [0, 1, 2]
    for one in sited:
        codes = [encode(one.sae, part[one.site.path]).rows for part in hidden]
        num_tokens, num_active = sum(len(code.indptr) - 1 for code in codes), sum(len(code.values) for code in codes)
        assert num_active / num_tokens == pytest.approx(8, rel=0.02)
        torch.testing.assert_close(one.sae.w_dec_CD.float().norm(dim=1), torch.ones(512), rtol=0.01, atol=0)
    assert len({one.sae.w_dec_CD.data_ptr() for one in sited}) == (1 if shared else 3)
    assert len({one.sae.w_enc_CD.data_ptr() for one in sited} | {one.sae.w_dec_CD.data_ptr() for one in sited}) == (
        2 if shared else 6
    )


def test_sites_share_weights_only_where_their_own_would_take_much_of_the_device() -> None:
    largest = Case(model=LLAMA_3_1_8B.name, sites=32, latents=131_072)
    assert shares_weights(largest, torch.bfloat16, 80e9)
    assert not shares_weights(FULL[1], torch.bfloat16, 80e9)
    assert shares_weights(FULL[1], torch.float32, 80e9)
    assert not shares_weights(largest, torch.bfloat16, float("inf"))


def bench(lm: LanguageModel, **parts: Any) -> Bench:
    defaults = {
        "lm_of": lambda _: lm,
        "watch": Stopwatch(CPU),
        "deadline": Deadline(100),
        "corpus": documents.SMALL,
        "sae_dtype": torch.bfloat16,
        "total_bytes": float("inf"),
        "free_bytes": lambda: float("inf"),
    }
    return Bench(**{**defaults, **parts})


def test_a_case_that_does_not_fit_the_memory_is_skipped_with_a_reason(lm: LanguageModel) -> None:
    outcome = bench(lm, free_bytes=lambda: 1e5).measure(CASE)
    assert outcome.state is State.SKIPPED
    assert "0.0 GB of device memory are free" in outcome.reason
    assert outcome.engine_ms is None


def test_a_model_that_does_not_fit_the_memory_is_skipped_with_a_reason(lm: LanguageModel) -> None:
    def lm_of(_: LmShape) -> LanguageModel:
        raise torch.OutOfMemoryError("no room")

    outcome = bench(lm, lm_of=lm_of).measure(CASE)
    assert outcome.state is State.SKIPPED
    assert "the model alone" in outcome.reason


def test_batches_are_halved_until_they_fit(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def score(*arguments: Any, **options: Any) -> Any:
        tokens = arguments[4].num_scored
        asked.append(tokens)
        if tokens > 64:
            raise torch.OutOfMemoryError("no room")
        return score_batch(*arguments, **options)

    monkeypatch.setattr(measurement, "score_batch", score)
    outcome = bench(lm).measure(CASE)
    assert outcome.state is State.MEASURED
    assert outcome.tokens_per_batch == 64
    assert max(asked) > 64
    assert outcome.tokens == sum(batch.num_scored for batch in random_batches(documents.SMALL, 512, 128))


def test_without_room_for_one_document_a_case_is_skipped(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(measurement, "score_batch", score)
    outcome = bench(lm).measure(CASE)
    assert (outcome.state, outcome.reason) == (State.SKIPPED, "out of memory even with 32 tokens in a batch")


def test_wrong_scores_are_not_timed(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*arguments: Any, **options: Any) -> Any:
        right = score_batch(*arguments, **options)
        (path, scores), *_ = right.sites.items()
        wrong = {name: 1.1 * projection for name, projection in scores.projections.items()}
        return replace(right, sites={path: replace(scores, projections=wrong)})

    monkeypatch.setattr(measurement, "score_batch", score)
    outcome = bench(lm).measure(CASE)
    assert outcome.state is State.WRONG
    assert "influences differ by 0.1 of their norm" in outcome.reason


def options(folder: Path, **parts: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "out": folder,
            "small": True,
            "commit": "abc",
            "attention": None,
            "sae_dtype": "bf16",
            "resume": False,
            **parts,
        }
    )


def read(folder: Path) -> tuple[dict[str, Any], str]:
    (path,) = folder.glob("*-end-to-end.json")
    return json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".md").read_text(encoding="utf-8")


def test_what_no_longer_fits_the_time_is_left_out_and_says_so(tmp_path: Path) -> None:
    command.run(options(tmp_path), Deadline(1), CPU)
    result, text = read(tmp_path)
    assert [values["state"] for values in result["cases"]] == ["skipped"] * len(SMALL)
    assert text.count("s were left") == len(SMALL)


def test_a_case_that_killed_its_process_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Case] = []

    def outcome(_bench: Bench, case: Case) -> Outcome:
        tried.append(case)
        if case == SMALL[1] and len(tried) == 2:
            raise KeyboardInterrupt
        return Outcome(case=case, state=State.SKIPPED, reason="tried")

    monkeypatch.setattr(command, "_outcome", outcome)
    with pytest.raises(KeyboardInterrupt):
        command.run(options(tmp_path), Deadline(100), CPU)
    assert [values["state"] for values in read(tmp_path)[0]["cases"]] == ["skipped", "begun, not finished"]
    command.run(options(tmp_path, resume=True), Deadline(100), CPU)
    assert tried == [SMALL[0], SMALL[1], *SMALL[2:]]
    states = {values["case"]["sites"]: values["state"] for values in read(tmp_path)[0]["cases"]}
    assert states[SMALL[1].sites] == "failed"


@pytest.mark.parametrize(("engine", "said"), [(104.0, "at most 1.05: met"), (106.0, "at most 1.05: missed")])
def test_a_goal_is_met_or_missed_by_the_medians(engine: float, said: str) -> None:
    times: dict[str, Any] = {"bare_ms": (90.0, 100.0, 120.0), "engine_ms": (90.0, engine, 120.0)}
    assert verdict(Outcome(case=FULL[0], state=State.MEASURED, **times)) == said
    assert verdict(Outcome(case=FULL[2], state=State.MEASURED, **times)) == "–"


def test_utilisation_is_held_against_the_data_sheet_or_a_measured_product() -> None:
    assert arithmetic.peak_rate("NVIDIA H100 80GB HBM3", 1.0)[0] == 989e12
    assert arithmetic.peak_rate("NVIDIA H200", 1.0)[0] == 989e12
    rate, source = arithmetic.peak_rate("NVIDIA Something", 123.0)
    assert rate == 123.0
    assert "measured here" in source


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """The result of the whole command, its page, and what it printed."""
    out = tmp_path_factory.mktemp("results")
    arguments = ["--only", "end_to_end", "--device", "cpu", "--small", "--commit", "abc", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return *read(out), done.stdout


def test_a_trial_measures_every_case_and_writes_its_report(trial: tuple[dict[str, Any], str, str]) -> None:
    result, text, printed = trial
    outcomes = [Outcome.from_json(values) for values in result["cases"]]
    assert [outcome.case for outcome in outcomes] == list(SMALL)
    for outcome in outcomes:
        assert outcome.state is State.MEASURED, outcome
        assert outcome.error is not None
        assert outcome.error < 0.05
        assert outcome.turns >= 3
        assert outcome.tokens > 200
        for times in (outcome.bare_ms, outcome.engine_ms):
            assert times is not None
            assert 0 < times[0] <= times[1] <= times[2]
        assert outcome.active is not None
        assert outcome.active[0] == pytest.approx(8, rel=0.1)
        assert outcome.stages_ms is not None
        assert {"forward", "head", "backward", "encode", "project"} <= set(outcome.stages_ms)
    assert "It says nothing about any GPU" in text
    assert text == page(result)
    assert text in printed
    assert "4 measured" in printed
    assert str(ROOT) not in text


def test_every_line_of_the_report_has_as_many_cells_as_its_head(trial: tuple[dict[str, Any], str, str]) -> None:
    blocks = [block.splitlines() for block in trial[1].split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1, block[0]
