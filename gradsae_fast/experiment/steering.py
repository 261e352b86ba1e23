"""Steering: take a question's own TopK latents out, put another question's in, and see whether its answer comes.

Source: the paper's Table 1, lower half. The other question is drawn from those on the same context (the paper's local
steering), or from all where no context is known; its answer must be a different one. "With its values" is open in the
paper; here a latent is injected at every token with its mean activation over the tokens of the other prompt on which it
is active (`mean-active`), or over all of them (`mean`), which keeps its total activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gradsae_fast.errors import CorpusError
from gradsae_fast.experiment.answered import Answered, AnsweredSet
from gradsae_fast.experiment.intervene import Edit
from gradsae_fast.experiment.masking import Condition, choose_sets, edited_answers, make_row
from gradsae_fast.experiment.metrics import normalise_answer
from gradsae_fast.experiment.report import Report
from gradsae_fast.records import Array, SparseScores

Strength = Literal["mean-active", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partner:
    """Question `own` is steered towards the answer of question `other`; both are positions in the answered set."""

    own: int
    other: int


def run_steering(found: AnsweredSet, *, strength: Strength = "mean-active") -> Report:
    """Exchange the sets of every pair, generate, and compare with the other question's accepted answers."""
    partners = draw_partners(found.answered, found.subject.setting.seed)
    steered = replace(found, answered=tuple(found.answered[pair.own] for pair in partners))
    edits: dict[Condition, list[Edit]] = {}
    own_sets: dict[Condition, list[Array]] = {}
    for condition, sets in choose_sets(found).items():
        own_sets[condition] = [sets[pair.own] for pair in partners]
        edits[condition] = [
            exchange(sets[pair.own], sets[pair.other], found.answered[pair.other].scores, strength) for pair in partners
        ]
    texts = edited_answers(steered, edits)
    accepted = [found.answered[pair.other].question.answers for pair in partners]
    rows = [make_row(steered, condition, own_sets[condition], texts[condition], accepted) for condition in edits]
    keys = [one.question.key for one in found.answered]
    pairs = [(keys[pair.own], keys[pair.other]) for pair in partners]
    facts = found.facts() | {"num_steered": len(partners), "strength": strength, "pairs": pairs}
    return Report(experiment="steering", facts=facts, rows=tuple(rows), overlaps=())


def draw_partners(answered: Sequence[Answered], seed: int) -> list[Partner]:
    """A random partner for each question that has one. CorpusError where none has."""
    generator = np.random.default_rng(seed)
    partners = []
    for own, one in enumerate(answered):
        others = [index for index, other in enumerate(answered) if index != own and _may_steer(one, other)]
        if others:
            partners.append(Partner(own=own, other=int(generator.choice(others))))
    if not partners:
        raise CorpusError(
            f"none of {len(answered)} questions has a partner: another one on the same context, with another answer, "
            "that the model answers right too. Raise --limit, or give questions that share contexts."
        )
    return partners


def exchange(own_K: Array, other_K: Array, other_scores: SparseScores, strength: Strength) -> Edit:
    """Drop one question's set, inject the other's with the values that its prompt had."""
    active_C = np.bincount(other_scores.indices, minlength=other_scores.num_latents)
    total_C = np.bincount(other_scores.indices, weights=other_scores.activation, minlength=other_scores.num_latents)
    divisor_K = active_C[other_K] if strength == "mean-active" else len(other_scores.indptr) - 1
    return Edit(drop_K=own_K, inject_K=other_K, value_K=(total_C[other_K] / divisor_K).astype(np.float32))


def _may_steer(one: Answered, other: Answered) -> bool:
    if one.question.context != other.question.context:
        return False
    answers = {normalise_answer(text) for text in one.question.answers}
    return answers.isdisjoint(normalise_answer(text) for text in other.question.answers)
