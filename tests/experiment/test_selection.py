"""Selection agrees with a second derivation of the authors' procedure: dense SAE, autograd, explicit loops.

The second derivation shares nothing with the engine but the weight files and the tokenizer. Its steps are those of
the authors' `gradsae.py`: hook, detach, encode everything, latents as a leaf, decode, backward of one scalar, gradient
times activation, ReLU (their code) or not (the paper), mean over all positions, sort.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from gradsae_fast.errors import ConfigError
from gradsae_fast.experiment.answered import AnsweredSet
from gradsae_fast.experiment.selection import (
    PAPER_SIZES,
    Candidates,
    bottom_set,
    find_candidates,
    influence_rule,
    mean_overlap,
    overlap_share,
    parse_size,
    score_latents,
    take_tokens,
    top_set,
)
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.records import SparseScores
from tests.experiment.conftest import MakeSubject, ask

LAYER = 1


class Dense:
    """The authors' hook: latents of every position as one dense leaf tensor."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.weights = load_file(folder / "sae_weights.safetensors")
        self.architecture = architecture
        self.latents: Tensor | None = None

    def __call__(self, _module: Any, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).detach()[0]
        w = self.weights
        before = (hidden - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        if self.architecture == "jumprelu":
            latents = torch.relu(before) * (before > w["threshold"])
        else:
            kept = torch.topk(before, 6, dim=1)
            latents = torch.relu(torch.zeros_like(before).scatter(1, kept.indices, kept.values))
        self.latents = latents.detach().requires_grad_(True)
        spliced = (self.latents @ w["W_dec"] + w["b_dec"])[None]
        return (spliced, *output[1:]) if isinstance(output, tuple) else spliced


def authors_scores(
    lm: LanguageModel, sae: Dense, prompt: str, answer: list[int], objective: str, preset: str
) -> tuple[list[float], list[float], int]:
    """Influence score and mean activation of every latent, and k of the 50 % rule."""
    tokenizer = lm.tokenizer
    prompt_ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    answer_ids = answer if objective == "continuation-prob" else []
    handle = lm.model.model.layers[LAYER].register_forward_hook(sae)
    try:
        logits = lm.model(input_ids=torch.tensor([prompt_ids + answer_ids])).logits[0]
    finally:
        handle.remove()
    probabilities = torch.softmax(logits.double(), -1)
    if objective == "continuation-prob":
        scalar = probabilities.new_ones(())
        for offset, token in enumerate(answer_ids):
            scalar = scalar * probabilities[len(prompt_ids) - 1 + offset, token]
    else:
        scalar = probabilities[-1].max()
    scalar.backward()
    assert sae.latents is not None
    assert sae.latents.grad is not None
    activation, product = sae.latents.detach(), (sae.latents.grad * sae.latents).detach()
    influence, mean_activation = [], []
    for latent in range(activation.shape[1]):
        total, active = 0.0, 0.0
        for position in range(len(prompt_ids)):
            value = product[position, latent].item()
            total += max(value, 0.0) if preset == "authors-code" else value
            active += activation[position, latent].item()
        influence.append(total / len(prompt_ids))
        mean_activation.append(active / len(prompt_ids))
    half = sum(1 for value in activation[len(prompt_ids) - 1] if value != 0) // 2
    return influence, mean_activation, half


def authors_sets(score: list[float], k: int) -> tuple[set[int], set[int]]:
    """First k of a full descending sort, zeros left out; the k smallest strictly positive ones."""
    descending = sorted(range(len(score)), key=lambda latent: -score[latent])
    positive = [latent for latent in descending if score[latent] > 0]
    return set(positive[:k]), set(sorted(positive, key=lambda latent: score[latent])[:k])


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
@pytest.mark.parametrize("objective", ["continuation-prob", "top-token:prob"])
@pytest.mark.parametrize("preset", ["paper", "authors-code"])
def test_sets_and_scores_are_those_of_a_dense_rederivation(
    make_subject: MakeSubject, tiny_lm: LanguageModel, preset: str, objective: str, architecture: str
) -> None:
    subject = make_subject(preset, objective, sae={"architecture": architecture})
    found = ask(subject)
    assert len(found.answered) >= 4
    dense = Dense(Path(subject.setting.sae.path), architecture)
    for index, one in enumerate(found.answered):
        influence, activation, half = authors_scores(
            tiny_lm, dense, one.question.prompt, one.answer_ids.tolist(), objective, preset
        )
        for ranking, wanted in (("influence", influence), ("activation", activation)):
            candidates = found.candidates(ranking)[index]  # type: ignore[arg-type]
            assert candidates.half_of_last == half
            positive = sorted((score for score in wanted if score > 0), reverse=True)
            np.testing.assert_allclose(candidates.score_P, positive, rtol=1e-4, atol=1e-6 * positive[0])
            for size in PAPER_SIZES:
                top, bottom = authors_sets(wanted, half if size == "50%" else size)
                assert set(top_set(candidates, size).tolist()) == top
                assert set(bottom_set(candidates, size).tolist()) == bottom


def test_the_presets_rank_differently_where_a_latent_has_both_signs(make_subject: MakeSubject) -> None:
    found: dict[str, AnsweredSet] = {
        preset: ask(make_subject(preset, "continuation-prob")) for preset in ("paper", "authors-code")
    }
    sizes = {preset: [len(one.latent_P) for one in each.candidates("influence")] for preset, each in found.items()}
    # ReLU before the mean keeps every latent that is positive anywhere; the signed mean keeps fewer.
    assert all(few < many for few, many in zip(sizes["paper"], sizes["authors-code"], strict=True))


def sparse(*rows: dict[int, tuple[float, float]], num_latents: int = 8) -> SparseScores:
    """Rows of latent -> (activation, projection)."""
    entries = [entry for row in rows for entry in sorted(row.items())]
    return SparseScores(
        indptr=np.cumsum([0, *[len(row) for row in rows]]),
        indices=np.array([latent for latent, _ in entries], np.int32),
        activation=np.array([pair[0] for _, pair in entries], np.float32),
        projections={"m": np.array([pair[1] for _, pair in entries], np.float32)},
        num_latents=num_latents,
    )


SCORES = sparse(
    {0: (2, 1), 1: (1, -4), 5: (1, 3)},
    {1: (1, 5)},
    {0: (2, -3), 2: (1, 1)},
    {1: (3, 0), 2: (1, 1), 3: (1, -1), 5: (1, 0)},
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("signed-mean", [-1, 1 / 4, 1 / 2, -1 / 4, 0, 3 / 4, 0, 0]),
        ("relu-mean", [1 / 2, 5 / 4, 1 / 2, 0, 0, 3 / 4, 0, 0]),
        ("mean-activation", [1, 5 / 4, 1 / 2, 1 / 4, 0, 1 / 2, 0, 0]),
    ],
)
def test_each_rule_is_its_formula(rule: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(score_latents(SCORES, rule, objective="m"), expected)
    if rule != "mean-activation":
        np.testing.assert_allclose(score_latents(SCORES, rule, objective="m", scale=0.5), np.multiply(expected, 0.5))


def test_sets_hold_positive_scores_only_and_the_percentage_comes_from_the_last_token() -> None:
    candidates = find_candidates(score_latents(SCORES, "signed-mean", objective="m"), SCORES)
    assert candidates.latent_P.tolist() == [5, 2, 1]
    assert candidates.half_of_last == 2
    assert top_set(candidates, 2).tolist() == top_set(candidates, "50%").tolist() == [5, 2]
    assert bottom_set(candidates, 2).tolist() == bottom_set(candidates, "50%").tolist() == [1, 2]
    assert top_set(candidates, 30).tolist() == [5, 2, 1]
    assert top_set(find_candidates(np.zeros(8), SCORES), 10).tolist() == []


def test_excluded_latents_are_no_candidates() -> None:
    excluded = np.zeros(8, bool)
    excluded[5] = True
    score = score_latents(SCORES, "signed-mean", objective="m")
    assert find_candidates(score, SCORES, excluded_C=excluded).latent_P.tolist() == [2, 1]


def test_taking_tokens_keeps_their_rows_whole() -> None:
    taken = take_tokens(SCORES, np.array([0, 2]))
    assert taken.indptr.tolist() == [0, 3, 5]
    assert taken.indices.tolist() == [0, 1, 5, 0, 2]
    assert taken.projections["m"].tolist() == [1, -4, 3, -3, 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 40))
def test_equal_scores_go_by_latent_id_and_top_and_bottom_meet_only_when_they_must(values: list[int], k: int) -> None:
    score = np.array(values, np.float64)
    candidates = find_candidates(score, sparse({}, {}, num_latents=len(values)))
    top, bottom = top_set(candidates, k), bottom_set(candidates, k)
    positive = int((score > 0).sum())
    assert len(top) == len(bottom) == min(k, positive)
    assert len(np.union1d(top, bottom)) == min(2 * min(k, positive), positive)
    assert list(top) == sorted(top, key=lambda latent: (-values[latent], latent))
    if 0 < len(top) < positive:
        outside = np.setdiff1d(np.flatnonzero(score > 0), top)
        assert min(score[top]) >= max(score[outside])


def test_overlap_is_the_share_of_the_larger_set() -> None:
    assert overlap_share(np.array([1, 2, 3, 4]), np.array([4, 9])) == 0.25
    assert math.isnan(overlap_share(np.array([]), np.array([])))
    empty = np.array([], np.int64)
    assert mean_overlap([(np.array([1]), np.array([1])), (np.array([1]), np.array([2])), (empty, empty)]) == 0.5
    assert math.isnan(mean_overlap([]))


def test_only_the_authors_code_drops_negative_influences_per_token() -> None:
    presets = ("paper", "authors-code", "gradsae", "attribution-patching")
    assert [influence_rule(preset) for preset in presets] == ["signed-mean", "relu-mean", "signed-mean", "signed-mean"]


@pytest.mark.parametrize("text", ["0", "-1", "ten", "50", "1.5", "²", "25%"])
def test_sizes_are_whole_numbers_or_half(text: str) -> None:
    if text == "50":
        assert parse_size(text) == 50
        return
    with pytest.raises(ConfigError, match="k is"):
        parse_size(text)


def test_candidates_keep_scores_beside_their_latents() -> None:
    candidates: Candidates = find_candidates(np.array([0.5, -1, 2, 0]), sparse({}, num_latents=4))
    assert (candidates.latent_P.tolist(), candidates.score_P.tolist()) == ([2, 0], [2.0, 0.5])
