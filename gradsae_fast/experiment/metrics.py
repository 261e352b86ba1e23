"""Exact match and F1 of an answer against accepted answers, as SQuAD v1.1 computes them.

Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1, and its evaluation
script: lower case, no ASCII punctuation, no English articles, single spaces; the best of all accepted answers counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """The form in which answers are compared.

    >>> normalise_answer(" The  Ceru-Jamanota. ")
    'cerujamanota'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer is one of the accepted ones after normalisation, else 0."""
    return float(any(normalise_answer(answer) == normalise_answer(other) for other in accepted))


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the normalised words, best of all accepted answers, 0 to 1.

    >>> token_f1("the city of Oranjestad", ["Oranjestad"])
    0.5
    """
    return max(_pair_f1(normalise_answer(answer).split(), normalise_answer(other).split()) for other in accepted)


def _pair_f1(found: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its bootstrap interval, both in percent."""

    mean: float
    low: float
    high: float


def bootstrap_interval(value_Q: Array, *, seed: int, num_draws: int = 2000, level: float = 0.95) -> Interval:
    """Percentile bootstrap over questions of the mean of `value_Q` (0 to 1, one per question, at least one).

    It says how far the mean would move with other questions; nothing about other models, SAEs or prompts.
    """
    draw_SQ = np.random.default_rng(seed).integers(len(value_Q), size=(num_draws, len(value_Q)))
    mean_S = value_Q[draw_SQ].mean(axis=1)
    low, high = np.quantile(mean_S, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=100 * float(value_Q.mean()), low=100 * float(low), high=100 * float(high))
