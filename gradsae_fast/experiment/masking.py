"""Masking: set the TopK or BottomK latents of each question to zero at all tokens, and see what the answers lose.

Source: the paper's Table 1, upper half, and Table 3 for the overlaps. Every question has its own set; the sets of all
rankings, ends and sizes are generated together, and equal sets of one question once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gradsae_fast.experiment.answered import DENSE_SHARE, AnsweredSet, answer_ids, to_text
from gradsae_fast.experiment.intervene import Edit
from gradsae_fast.experiment.metrics import bootstrap_interval, exact_match, token_f1
from gradsae_fast.experiment.report import Overlap, Report, Row
from gradsae_fast.experiment.selection import Candidates, SetSize, bottom_set, mean_overlap, top_set
from gradsae_fast.experiment.subject import Ranking
from gradsae_fast.records import Array

ENDS: Mapping[str, Callable[[Candidates, SetSize], Array]] = {"top": top_set, "bottom": bottom_set}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One row of the table: how latents are ranked, which end is taken, and how many."""

    ranking: Ranking
    end: str
    size: SetSize


Sets = Mapping[Condition, Sequence[Array]]
"""Condition -> the set of latents of every question."""


def choose_sets(found: AnsweredSet) -> dict[Condition, list[Array]]:
    """The TopK and BottomK sets of every question under every ranking and size."""
    setting = found.subject.setting
    sets: dict[Condition, list[Array]] = {}
    for ranking in setting.rankings:
        candidates = found.candidates(ranking)
        for end, choose in ENDS.items():
            for size in setting.sizes:
                sets[Condition(ranking=ranking, end=end, size=size)] = [choose(one, size) for one in candidates]
    return sets


def run_masking(found: AnsweredSet) -> Report:
    """Mask every set, generate, and compare with the accepted answers."""
    sets = choose_sets(found)
    texts = edited_answers(found, {key: [Edit(drop_K=latents) for latents in each] for key, each in sets.items()})
    rows = [
        make_row(found, condition, sets[condition], texts[condition], [one.question.answers for one in found.answered])
        for condition in sets
    ]
    return Report(
        experiment="masking", facts=found.facts(), rows=tuple(rows), overlaps=tuple(measure_overlaps(found, sets))
    )


def edited_answers(found: AnsweredSet, edits: Mapping[Condition, Sequence[Edit]]) -> dict[Condition, list[str]]:
    """What the model answers under every condition; edits that do the same to a question are generated once."""
    jobs: dict[tuple[int, tuple[bytes, bytes, bytes]], Edit] = {
        (index, edit.key()): edit for each in edits.values() for index, edit in enumerate(each)
    }
    known = {(index, Edit().key()): one.answer for index, one in enumerate(found.answered)}
    todo = [job for job in jobs if job not in known]
    prompts = [found.answered[index].prompt for index, _ in todo]
    answers = answer_ids(found.subject, prompts, [jobs[job] for job in todo]) if todo else []
    known |= {job: to_text(found.subject, ids) for job, ids in zip(todo, answers, strict=True)}
    return {key: [known[index, edit.key()] for index, edit in enumerate(each)] for key, each in edits.items()}


def make_row(
    found: AnsweredSet,
    condition: Condition,
    sets: Sequence[Array],
    texts: Sequence[str],
    accepted: Sequence[Sequence[str]],
) -> Row:
    """Exact match and F1 of one condition, and what its sets are made of."""
    seed = found.subject.setting.seed
    pairs = list(zip(texts, accepted, strict=True))
    chosen = np.concatenate(sets) if sets else np.zeros(0, np.int64)
    return Row(
        ranking=condition.ranking,
        end=condition.end,
        size=str(condition.size),
        num_questions=len(texts),
        exact_match=bootstrap_interval(np.array([exact_match(*pair) for pair in pairs]), seed=seed),
        f1=bootstrap_interval(np.array([token_f1(*pair) for pair in pairs]), seed=seed),
        answers=tuple(texts),
        mean_set_size=len(chosen) / len(sets),
        dense_per_set=float((found.density_C[chosen] > DENSE_SHARE).sum()) / len(sets),
    )


def measure_overlaps(found: AnsweredSet, sets: Sets) -> list[Overlap]:
    """Overlap of the rankings' sets of one question, and of one ranking's sets of questions on one context."""
    setting = found.subject.setting
    shared = _same_context_pairs(found)
    overlaps = []
    for end in ENDS:
        for size in setting.sizes:
            of = {name: sets[Condition(ranking=name, end=end, size=size)] for name in setting.rankings}
            for first, second in combinations(of, 2):
                share = mean_overlap(list(zip(of[first], of[second], strict=True)))
                overlaps.append(Overlap(what=f"{first} and {second}", end=end, size=str(size), share=share))
            for name, each in of.items():
                share = mean_overlap([(each[a], each[b]) for a, b in shared])
                overlaps.append(Overlap(what=f"{name}, questions on one context", end=end, size=str(size), share=share))
    return overlaps


def _same_context_pairs(found: AnsweredSet) -> list[tuple[int, int]]:
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(found.answered):
        if one.question.context is not None:
            groups.setdefault(one.question.context, []).append(index)
    return [pair for group in groups.values() for pair in combinations(group, 2)]
