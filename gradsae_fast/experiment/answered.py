"""The questions that a model answers right before any intervention, and the sparse scores of their prompts.

The unmasked run is the method's own: with the reconstruction spliced in where it splices, as in the authors' code. So
every experiment starts at 100 % exact match, and what it loses, it loses by the intervention.

Letters: Q questions, N tokens of a prompt, C latents.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from gradsae_fast.corpus.windows import batch_windows
from gradsae_fast.errors import CorpusError
from gradsae_fast.experiment.generate import Prompt, generate
from gradsae_fast.experiment.intervene import Edit, Intervention
from gradsae_fast.experiment.metrics import exact_match
from gradsae_fast.experiment.questions import Question
from gradsae_fast.experiment.selection import (
    Candidates,
    find_candidates,
    half_of_last_token,
    influence_rule,
    score_latents,
    take_tokens,
)
from gradsae_fast.experiment.subject import Ranking, Subject, whole_window, with_answer, with_sink_limit
from gradsae_fast.method import ANSWER_OBJECTIVES, score_scale
from gradsae_fast.model.objectives import Objective
from gradsae_fast.records import Array, SparseScores, TokenDocument, counted_tokens
from gradsae_fast.score import score_batch

TOKENS_PER_BATCH = 1024
DENSE_SHARE = 0.2  # of prompt tokens: latents that fire on more are counted as dense in reports


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """A question that the model answers right, and what its prompt's latents did."""

    question: Question
    prompt: Prompt
    answer: str  # the model's own, unmasked
    answer_ids: Array  # int64, its tokens; at least one
    scores: SparseScores  # of the prompt's counted tokens
    scale: float  # what influences are multiplied by


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnsweredSet:
    """All of them, with what it took to find them."""

    subject: Subject
    answered: tuple[Answered, ...]
    num_tried: int
    num_right_clean: int  # without any SAE
    num_right_unmasked: int  # in the method's own mode: those that are kept
    density_C: Array  # share of counted prompt tokens on which a latent is active

    def facts(self) -> dict[str, Any]:
        """What a report says of the run that it comes from."""
        subject = self.subject
        setting = asdict(subject.setting)
        return {
            "setting": setting,
            "method": asdict(subject.method),
            "influence_rule": influence_rule(subject.method.preset),
            "site": subject.sited.site.path,
            "sae_digest": subject.sited.sae.facts.digest,
            "bos": subject.bos_decision,
            "num_tried": self.num_tried,
            "num_right_clean": self.num_right_clean,
            "num_right_unmasked": self.num_right_unmasked,
            "questions": [one.question.key for one in self.answered],
            "num_contexts": len({one.question.context for one in self.answered}),
            "num_dense_latents": int((self.density_C > DENSE_SHARE).sum()),
            "mean_half_of_last": float(np.mean([half_of_last_token(one.scores) for one in self.answered])),
            "versions": {name: version(name) for name in ("gradsae-fast", "torch", "transformers")},
        }

    def candidates(self, ranking: Ranking) -> list[Candidates]:
        """The latents to choose from, per question."""
        subject = self.subject
        rule = "mean-activation" if ranking == "activation" else influence_rule(subject.method.preset)
        excluded_C = self.density_C > subject.setting.max_density
        return [
            find_candidates(
                score_latents(one.scores, rule, objective=subject.objective, scale=one.scale),
                one.scores,
                excluded_C=excluded_C,
            )
            for one in self.answered
        ]


def find_answered(subject: Subject, questions: Sequence[Question]) -> AnsweredSet:
    """Generate for all questions, keep those answered right, and score their prompts. CorpusError where none is."""
    documents = subject.tokenise(questions)
    subject = with_sink_limit(subject, documents)
    prompts = [subject.prompt(document) for document in documents]
    clean = answer_ids(subject, prompts, None)
    unmasked = clean if subject.method.use_error_term else answer_ids(subject, prompts, [Edit()] * len(prompts))
    right = _right(subject, unmasked, questions)
    num_right_clean = len(_right(subject, clean, questions))
    if not right:
        example = subject.lm.tokenizer.decode(unmasked[0])
        raise CorpusError(
            f"the model answers none of {len(questions)} questions right with the SAE in place (without it "
            f"{num_right_clean}): {example!r} where {questions[0].answers[0]!r} was expected. Try another --template, "
            "--stop or --preset."
        )
    scores, scales = _score(subject, [documents[i] for i in right], [unmasked[i] for i in right])
    answered = [
        Answered(
            question=questions[i],
            prompt=prompts[i],
            answer=to_text(subject, unmasked[i]),
            answer_ids=unmasked[i],
            scores=scores[j],
            scale=scales[j],
        )
        for j, i in enumerate(right)
    ]
    return AnsweredSet(
        subject=subject,
        answered=tuple(answered),
        num_tried=len(questions),
        num_right_clean=num_right_clean,
        num_right_unmasked=len(right),
        density_C=_density(scores),
    )


def answer_ids(subject: Subject, prompts: Sequence[Prompt], edits: Sequence[Edit] | None) -> list[Array]:
    """The tokens that the model answers to each prompt; with one edit each, or without any SAE."""
    intervention = None if edits is None else Intervention(subject.sited, subject.method, edits)
    return generate(subject.lm, prompts, subject.decoding, intervention)


def to_text(subject: Subject, ids: Array) -> str:
    """An answer as it is compared."""
    return subject.lm.tokenizer.decode(ids, skip_special_tokens=True)


def _right(subject: Subject, answers: Sequence[Array], questions: Sequence[Question]) -> list[int]:
    """Which questions are answered exactly; an answer without a token matches an article, but cannot be scored."""
    return [
        index
        for index, (ids, question) in enumerate(zip(answers, questions, strict=True))
        if len(ids) and exact_match(to_text(subject, ids), question.answers)
    ]


def _score(
    subject: Subject, documents: Sequence[TokenDocument], answers: Sequence[Array]
) -> tuple[list[SparseScores], list[float]]:
    """Sparse scores of each prompt's tokens, and the factor of its influences.

    The continuation objectives read the model's own answer, teacher-forced; the others the prompt's last position.
    """
    if subject.objective in ANSWER_OBJECTIVES:
        documents = [with_answer(document, ids) for document, ids in zip(documents, answers, strict=True)]
    windows = [whole_window(document) for document in documents]
    slot_of = {id(window): slot for slot, window in enumerate(windows)}
    site = subject.sited.site.path
    scores: dict[int, SparseScores] = {}
    scales: dict[int, float] = {}
    for batch in batch_windows(windows, tokens_per_batch=TOKENS_PER_BATCH):
        found = score_batch(subject.lm, [subject.sited], subject.method, [Objective(name=subject.objective)], batch)
        scale_B = score_scale(subject.objective, found.values[site][subject.objective])
        first = 0
        for row, window in enumerate(batch.windows):
            stop = first + window.num_scored
            counted_N = counted_tokens(found.mask_N[first:stop], subject.method.include_special)
            in_prompt_N = np.arange(window.num_scored) < _prompt_length(window.document)
            tokens = first + np.flatnonzero(counted_N & in_prompt_N)
            if not len(tokens):
                raise CorpusError(f"every token of question {window.document.document.key!r} is masked. Leave it out.")
            scores[slot_of[id(window)]] = take_tokens(found.sites[site], tokens)
            scales[slot_of[id(window)]] = float(scale_B[row])
            first = stop
    return [scores[slot] for slot in range(len(windows))], [scales[slot] for slot in range(len(windows))]


def _prompt_length(document: TokenDocument) -> int:
    return document.num_tokens if document.answer_start is None else document.answer_start


def _density(scores: Sequence[SparseScores]) -> Array:
    """Share of the tokens of all prompts on which each latent is active, float64 [C]."""
    num_tokens = sum(len(one.indptr) - 1 for one in scores)
    return np.bincount(np.concatenate([one.indices for one in scores]), minlength=scores[0].num_latents) / num_tokens
