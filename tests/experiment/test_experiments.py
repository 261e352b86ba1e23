"""Masking and steering on the tiny model, and what their reports say."""

import csv
import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradsae_fast.cli_experiment import experiment
from gradsae_fast.config import ScoreConfig
from gradsae_fast.errors import ConfigError, CorpusError, GradsaeError
from gradsae_fast.experiment.answered import answer_ids, find_answered, to_text
from gradsae_fast.experiment.intervene import Edit
from gradsae_fast.experiment.masking import Condition, choose_sets, edited_answers, run_masking
from gradsae_fast.experiment.questions import Question
from gradsae_fast.experiment.report import to_csv, to_json, to_markdown, to_svg, write_report
from gradsae_fast.experiment.steering import draw_partners, exchange, run_steering
from gradsae_fast.experiment.subject import load_subject
from tests.experiment.conftest import PROMPTS, MakeSubject, ask
from tests.experiment.test_selection import SCORES


def test_masking_nothing_leaves_every_answer_and_masking_much_does_not(make_subject: MakeSubject) -> None:
    found = ask(make_subject("paper", sizes=(1, 30)))
    key = Condition(ranking="influence", end="top", size=1)
    nothing = edited_answers(found, {key: [Edit()] * len(found.answered)})[key]
    assert nothing == [one.answer for one in found.answered]
    report = run_masking(found)
    by_key = {(row.ranking, row.end, row.size): row for row in report.rows}
    assert set(by_key) == {
        (ranking, end, size)
        for ranking in ("activation", "influence")
        for end in ("top", "bottom")
        for size in ("1", "30")
    }
    assert by_key["influence", "top", "30"].exact_match.mean < 50
    assert by_key["influence", "bottom", "1"].exact_match.mean > by_key["influence", "top", "30"].exact_match.mean
    assert all(row.num_questions == len(found.answered) for row in report.rows)


def test_each_row_is_what_its_masks_give_one_at_a_time(make_subject: MakeSubject) -> None:
    found = ask(make_subject("gradsae", "continuation-prob", sizes=(10, "50%")))
    report = run_masking(found)
    for row, (condition, sets) in zip(report.rows, choose_sets(found).items(), strict=True):
        right = 0
        for one, latents in zip(found.answered, sets, strict=True):
            (ids,) = answer_ids(found.subject, [one.prompt], [Edit(drop_K=latents)])
            right += to_text(found.subject, ids) == one.answer
        assert (row.ranking, row.end, row.size) == (condition.ranking, condition.end, str(condition.size))
        assert row.exact_match.mean == pytest.approx(100 * right / len(found.answered))
        assert row.mean_set_size == pytest.approx(np.mean([len(latents) for latents in sets]))


def test_only_questions_that_are_answered_right_are_used(make_subject: MakeSubject) -> None:
    subject = make_subject("paper")
    right = ask(subject)
    wrong = Question(key="wrong", prompt=PROMPTS[0], answers=("something that the model does not say",))
    found = find_answered(subject, [wrong, *[one.question for one in right.answered]])
    assert [one.question.key for one in found.answered] == [one.question.key for one in right.answered]
    assert found.num_tried == len(right.answered) + 1
    assert found.facts()["num_right_unmasked"] == len(right.answered)
    with pytest.raises(CorpusError, match="none of 1 questions right"):
        find_answered(subject, [wrong])


def test_the_unmasked_run_is_the_methods_own(make_subject: MakeSubject) -> None:
    kept, spliced = ask(make_subject("attribution-patching", "continuation-prob")), ask(make_subject("paper"))
    assert kept.num_right_clean == len(kept.answered)
    # A tiny random model says something else once the reconstruction stands in for its hidden state.
    assert spliced.num_right_clean < len(spliced.answered)


def test_masked_positions_do_not_enter_the_scores_of_the_default_preset(make_subject: MakeSubject) -> None:
    everything = ask(make_subject("paper", "continuation-prob"))
    unmasked = ask(make_subject("gradsae", "continuation-prob"))
    lengths = {one.question.key: len(one.scores.indptr) for one in everything.answered}
    assert all(len(one.prompt.token_ids) + 1 == lengths[one.question.key] for one in everything.answered)
    assert all(len(one.scores.indptr) < lengths[one.question.key] for one in unmasked.answered)


def test_dense_latents_are_left_out_where_asked(make_subject: MakeSubject) -> None:
    free, sparse_only = ask(make_subject("paper")), ask(make_subject("paper", max_density=0.3))
    dense = set(np.flatnonzero(free.density_C > 0.3).tolist())
    assert dense
    tokens = sum(len(one.scores.indptr) - 1 for one in free.answered)
    for latent in dense:
        assert free.density_C[latent] * tokens == pytest.approx(
            sum((one.scores.indices == latent).sum() for one in free.answered)
        )
    chosen = {latent for each in sparse_only.candidates("activation") for latent in each.latent_P.tolist()}
    assert not chosen & dense
    assert {latent for each in free.candidates("activation") for latent in each.latent_P.tolist()} & dense


def test_partners_share_a_context_and_have_another_answer(make_subject: MakeSubject) -> None:
    answered = ask(make_subject("paper")).answered
    pairs = draw_partners(answered, seed=0)
    assert pairs == draw_partners(answered, seed=0)
    for pair in pairs:
        assert pair.own != pair.other
        assert answered[pair.own].question.context == answered[pair.other].question.context
    same = [dataclasses.replace(one, question=dataclasses.replace(one.question, answers=("x",))) for one in answered]
    with pytest.raises(CorpusError, match="none of"):
        draw_partners(same, seed=0)
    free = [dataclasses.replace(one, question=dataclasses.replace(one.question, context=None)) for one in answered]
    assert len(draw_partners(free, seed=0)) == len(free)


def test_an_exchange_drops_one_set_and_injects_the_other_with_its_mean_activation() -> None:
    edit = exchange(np.array([4, 6]), np.array([1, 2]), SCORES, "mean-active")
    assert edit.drop_K.tolist() == [4, 6]
    assert edit.inject_K.tolist() == [1, 2]
    np.testing.assert_allclose(edit.value_K, [5 / 3, 1], rtol=1e-6)
    assert exchange(np.array([4]), np.array([1, 2]), SCORES, "mean").value_K.tolist() == [5 / 4, 1 / 2]


def test_steering_with_the_other_prompts_own_set_is_scored_on_the_others_answer(make_subject: MakeSubject) -> None:
    found = ask(make_subject("paper", sizes=(10,)))
    report = run_steering(found, strength="mean")
    pairs = draw_partners(found.answered, found.subject.setting.seed)
    assert report.facts["num_steered"] == len(pairs) == report.rows[0].num_questions
    sets = choose_sets(found)
    for row, (_, each) in zip(report.rows, sets.items(), strict=True):
        right = 0
        for pair in pairs:
            edit = exchange(each[pair.own], each[pair.other], found.answered[pair.other].scores, "mean")
            (ids,) = answer_ids(found.subject, [found.answered[pair.own].prompt], [edit])
            right += to_text(found.subject, ids) == found.answered[pair.other].answer
        assert row.exact_match.mean == pytest.approx(100 * right / len(pairs))


def test_a_report_says_the_same_as_json_csv_markdown_and_plot(make_subject: MakeSubject, tmp_path: Path) -> None:
    report = run_masking(ask(make_subject("authors-code", sizes=(1, "50%"))))
    paths = write_report(report, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["masking.json", "masking.csv", "masking.md", "masking.svg"]
    table = json.loads(paths[0].read_text(encoding="utf-8"))
    lines = list(csv.DictReader(io.StringIO(paths[1].read_text(encoding="utf-8"))))
    assert len(table["rows"]) == len(lines) == 8
    for row, line in zip(table["rows"], lines, strict=True):
        assert (row["ranking"], row["end"], row["size"]) == (line["ranking"], line["end"], line["k"])
        assert len(row["answers"]) == len(table["facts"]["questions"])
        assert float(line["em_mean"]) == pytest.approx(row["exact_match"]["mean"], abs=0.005)
    text = paths[2].read_text(encoding="utf-8")
    assert f"{table['facts']['num_right_unmasked']} right in the method's own mode" in text
    assert "| TopK | activation and influence |" in text
    root = ElementTree.fromstring(paths[3].read_text(encoding="utf-8"))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 8
    assert table["facts"]["influence_rule"] == "relu-mean"


def test_a_missing_number_is_null_in_json_and_a_dash_in_markdown(make_subject: MakeSubject) -> None:
    found = ask(make_subject("paper", sizes=(1,)), PROMPTS[:1])
    report = run_masking(found)
    assert json.loads(to_json(report))["overlaps"][-1]["share"] is None
    assert "| – |" in to_markdown(report)
    assert to_csv(report).count("\n") == 5
    assert to_svg(report).startswith("<svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "sizes are"),
        ({"sizes": (1, 1)}, "sizes are"),
        ({"rankings": ()}, "rankings are"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompts_per_batch": 0}, "prompts_per_batch is 0"),
        ({"max_density": 0.0}, "max_density is"),
        ({"stop": ("",)}, "stop string is empty"),
        ({"objective": "logit-diff"}, "not logit-diff"),
    ],
)
def test_settings_without_sense_are_refused(make_subject: MakeSubject, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_subject(**options)


def test_answers_end_before_a_token_that_contains_the_stop_text(make_subject: MakeSubject) -> None:
    subject = make_subject("paper", stop=("e",), max_new_tokens=12)
    found = ask(subject)
    assert all("e" not in one.answer for one in found.answered)
    assert subject.lm.tokenizer.eos_token_id in subject.decoding.stop_ids


@pytest.mark.parametrize("verb", ["masking", "steering"])
def test_the_command_line_runs_an_experiment_and_writes_its_report(
    tiny_model_folder: Path, tiny_sae_folder: Path, make_subject: MakeSubject, tmp_path: Path, verb: str
) -> None:
    found = ask(make_subject("paper", sae={}, stop=("\n",)))
    rows = [
        {"prompt": one.question.prompt, "answer": one.answer, "context": one.question.context} for one in found.answered
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [verb, "--model", str(tiny_model_folder), "--sae", str(tiny_sae_folder), "--questions", str(path)]
    options = ["-k", "1", "--k", "50%", "--max-new-tokens", "6", "--seed", "3", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(experiment, command + options)
    assert result.exit_code == 0, result.output
    assert f"{len(rows)} questions tried" in result.output
    table = json.loads((tmp_path / "out" / f"{verb}.json").read_text(encoding="utf-8"))
    assert table["facts"]["setting"]["seed"] == 3
    assert {row["size"] for row in table["rows"]} == {"1", "50%"}


def test_the_command_line_refuses_what_it_does_not_know(
    tiny_model_folder: Path, tiny_sae_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    base = ["--model", str(tiny_model_folder), "--sae", str(tiny_sae_folder), "--questions", str(path)]
    for verb, *options in (
        ["masking", "--method", "gradient"],
        ["masking", "-k", "half"],
        ["masking", "--preset", "papper"],
        ["masking", "--objective", "nothing"],
        ["steering", "--strength", "full"],
    ):
        result = CliRunner().invoke(experiment, [verb, *base, *options])
        assert isinstance(result.exception, GradsaeError), options


def test_a_score_config_names_one_objective(make_subject: MakeSubject) -> None:
    subject = make_subject("paper")
    two = ScoreConfig(preset="paper", objectives=("continuation", "entropy"))
    with pytest.raises(ConfigError, match="expected one"):
        load_subject(dataclasses.replace(subject.setting, score=two))
