"""Scores of one prompt are the engine's scores of the same text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradsae_fast import open_scores
from gradsae_fast.config import ExtractConfig, SaeConfig, ScoreConfig
from gradsae_fast.errors import ConfigError, CorpusError
from gradsae_fast.extract import extract
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.prompt import score_prompt

Configure = Callable[..., ExtractConfig]
TEXT = "The state of the union is strong."
BOTH = ScoreConfig(objectives=("next-token", "top-token:logit"), sink_norm_ratio=0)


def test_a_prompt_scores_as_it_does_in_a_store(
    configure: Configure, tmp_path: Path, tiny_model_folder: Path, tiny_sae_folder: Path
) -> None:
    (tmp_path / "one.jsonl").write_text(f'{{"text": "{TEXT}"}}\n')
    objectives = list(BOTH.objectives)
    config = configure(
        corpus={"path": str(tmp_path / "one.jsonl")},
        store={"precision_bits": 23},
        score={"objectives": objectives, "sink_norm_ratio": 0},
    )
    extract(config)
    (segment,) = open_scores(config.store.path).segments
    stored, tokens = segment.site("model.layers.1").by_token(), segment.tokens()
    table = score_prompt(TEXT, model=str(tiny_model_folder), sae=str(tiny_sae_folder), score=BOTH)
    assert table.num_rows == len(stored.indices) * len(objectives)
    for name in objectives:
        rows = [row for row in table.to_pylist() if row["objective"] == name]
        rows.sort(key=lambda row: (row["position"], row["latent"]))
        row_Z = np.repeat(np.arange(segment.num_tokens), np.diff(stored.indptr))
        assert [row["position"] for row in rows] == row_Z.tolist()
        assert [row["latent"] for row in rows] == stored.indices.tolist()
        influence_Z = stored.activation * stored.projections[name]
        np.testing.assert_allclose([row["influence"] for row in rows], influence_Z, rtol=1e-4, atol=1e-6)
        assert [row["masked"] for row in rows] == (tokens.mask[row_Z] != 0).tolist()
        value = float(table.schema.metadata[f"value of {name}".encode()])
        assert value == pytest.approx(segment.documents().objectives[name][0], rel=1e-5)


def test_a_loaded_model_is_accepted_and_rows_come_by_influence_with_their_text(
    tiny_lm: LanguageModel, tiny_sae_folder: Path
) -> None:
    table = score_prompt(TEXT, model=tiny_lm, sae=SaeConfig(path=str(tiny_sae_folder), site="blocks.2.hook_resid_post"))
    influence = table["influence"].to_numpy()
    assert (np.diff(influence) <= 0).all()
    assert table.schema.metadata[b"site"] == b"model.layers.2"
    tokens = dict(zip(table["position"].to_pylist(), table["token"].to_pylist(), strict=True))
    assert "".join(tokens[position] for position in sorted(tokens)) == TEXT
    masked = {row["position"] for row in table.to_pylist() if row["masked"]}
    assert masked == {0}


def test_token_ids_that_the_user_masks_are_masked(tiny_lm: LanguageModel, tiny_sae_folder: Path) -> None:
    third = tiny_lm.tokenizer(TEXT)["input_ids"][2]
    table = score_prompt(
        TEXT, model=tiny_lm, sae=str(tiny_sae_folder), score=ScoreConfig(mask_token_ids=(third,)), bos="never"
    )
    masked = {row["position"] for row in table.to_pylist() if row["masked"]}
    assert masked >= {0, 2}
    assert len(masked) < len(set(table["position"].to_pylist()))


def test_answers_and_contrasts_reach_their_objectives(tiny_lm: LanguageModel, tiny_sae_folder: Path) -> None:
    answer = score_prompt(
        "The state of", model=tiny_lm, sae=str(tiny_sae_folder), answer=" the union", score=ScoreConfig(preset="paper")
    )
    assert set(answer["objective"].to_pylist()) == {"continuation-prob"}
    assert 0 < float(answer.schema.metadata[b"value of continuation-prob"]) < 1
    contrast = score_prompt(
        "Our duty:",
        model=tiny_lm,
        sae=str(tiny_sae_folder),
        contrast=(" peace", " work"),
        score=ScoreConfig(objectives=("logit-diff",)),
    )
    assert set(contrast["objective"].to_pylist()) == {"logit-diff"}


def test_a_prompt_of_special_tokens_alone_is_masked_throughout(tiny_lm: LanguageModel, tiny_sae_folder: Path) -> None:
    table = score_prompt("<eos>", model=tiny_lm, sae=str(tiny_sae_folder))
    assert all(table["masked"].to_pylist())


def test_prompts_that_cannot_be_scored_are_refused(tiny_lm: LanguageModel, tiny_sae_folder: Path) -> None:
    sae = str(tiny_sae_folder)
    with pytest.raises(CorpusError, match="no token to score"):
        score_prompt("", model=tiny_lm, sae=sae)
    with pytest.raises(CorpusError, match="built for at most 256"):
        score_prompt(TEXT * 50, model=tiny_lm, sae=sae)
    with pytest.raises(ConfigError, match="needs prompt and answer"):
        score_prompt(TEXT, model=tiny_lm, sae=sae, score=ScoreConfig(preset="paper"))


def test_the_probability_of_an_answer_is_the_unit_of_its_influences(
    tiny_lm: LanguageModel, tiny_sae_folder: Path
) -> None:
    tables = {}
    for objective in ("continuation", "continuation-prob"):
        tables[objective] = score_prompt(
            "The state of the union is",
            model=tiny_lm,
            sae=str(tiny_sae_folder),
            answer=" strong",
            score=ScoreConfig(objectives=(objective,)),
        ).sort_by([("position", "ascending"), ("latent", "ascending")])
    p = float(tables["continuation-prob"].schema.metadata[b"value of continuation-prob"])
    log_p = float(tables["continuation"].schema.metadata[b"value of continuation"])
    assert p == pytest.approx(np.exp(log_p), rel=1e-4)
    by_p, by_log_p = (np.array(tables[name].column("influence")) for name in ("continuation-prob", "continuation"))
    np.testing.assert_allclose(by_p, p * by_log_p, rtol=1e-4, atol=1e-9)
