"""Which latents drive an answer: scores per latent over the tokens of a prompt, and the TopK and BottomK sets.

Three rules reduce the sparse scores of a prompt's N tokens to one score per latent:

    signed-mean       (1/N) Σ_n g[n, c]              the paper, section 2
    relu-mean         (1/N) Σ_n max(g[n, c], 0)      the authors' code
    mean-activation   (1/N) Σ_n a[n, c]              the paper's baseline

The candidates are the latents of positive score; TopK are the K largest of them, BottomK the K smallest. N counts
every token of the prompt, BOS included. K = "50%" is half (rounded down) of the number of latents that are active at
the last token.

Where fewer than K latents are candidates, all of them are taken. The authors' code then fills TopK with latents of
score 0, in an order that its sort leaves open: masking those changes little, injecting them is arbitrary, so they are
left out.

Letters: N tokens, C latents of the SAE, Z active pairs, K size of a set, P candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradsae_fast.errors import ConfigError
from gradsae_fast.records import Array, SparseScores

Rule = Literal["signed-mean", "relu-mean", "mean-activation"]
SetSize = int | Literal["50%"]

PAPER_SIZES: tuple[SetSize, ...] = (1, 10, 20, 30, "50%")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The latents of positive score, largest first; equal scores go by latent id."""

    latent_P: Array  # int64
    score_P: Array  # float64
    half_of_last: int  # half the number of active latents at the last token


def influence_rule(preset: str) -> Rule:
    """How a preset reduces influences over tokens: the authors' code drops negative ones first."""
    return "relu-mean" if preset == "authors-code" else "signed-mean"


def take_tokens(scores: SparseScores, rows: Array) -> SparseScores:
    """The scores of some tokens, `rows` ascending: a prompt's, without its answer and what its method masks."""
    counts = np.diff(scores.indptr)
    kept = np.zeros(len(counts), bool)
    kept[rows] = True
    kept_Z = np.repeat(kept, counts)
    return SparseScores(
        indptr=np.concatenate([[0], np.cumsum(counts[rows])]).astype(np.int64),
        indices=scores.indices[kept_Z],
        activation=scores.activation[kept_Z],
        projections={name: projection[kept_Z] for name, projection in scores.projections.items()},
        num_latents=scores.num_latents,
    )


def score_latents(scores: SparseScores, rule: Rule, *, objective: str = "", scale: float = 1.0) -> Array:
    """One score per latent, float64 [C], over all tokens of `scores` (at least one).

    `objective` names the projection (not needed for mean-activation); `scale` multiplies influences, as
    `gradsae_fast.method.score_scale` says for the objective.
    """
    value_Z = scores.activation.astype(np.float64)
    if rule != "mean-activation":
        # The product is taken in float32, as the engine stores and reports it.
        value_Z = (scores.activation * scores.projections[objective]).astype(np.float64) * scale
    if rule == "relu-mean":
        value_Z = np.maximum(value_Z, 0)
    num_tokens = len(scores.indptr) - 1
    return np.bincount(scores.indices, weights=value_Z, minlength=scores.num_latents) / num_tokens


def find_candidates(score_C: Array, scores: SparseScores, *, excluded_C: Array | None = None) -> Candidates:
    """The positive scores in order; `excluded_C` (bool) leaves latents out, such as those that fire everywhere."""
    allowed_C = score_C > 0 if excluded_C is None else (score_C > 0) & ~excluded_C
    latent_P = np.flatnonzero(allowed_C)
    latent_P = latent_P[np.argsort(-score_C[latent_P], kind="stable")]
    return Candidates(latent_P=latent_P, score_P=score_C[latent_P], half_of_last=half_of_last_token(scores))


def half_of_last_token(scores: SparseScores) -> int:
    """Half of the number of active latents at the last token, rounded down."""
    return int(scores.indptr[-1] - scores.indptr[-2]) // 2


def top_set(candidates: Candidates, size: SetSize) -> Array:
    """The K latents of largest score, largest first; fewer where there are fewer candidates."""
    return candidates.latent_P[: _count(candidates, size)]


def bottom_set(candidates: Candidates, size: SetSize) -> Array:
    """The K latents of smallest positive score, smallest first; fewer where there are fewer candidates."""
    return candidates.latent_P[::-1][: _count(candidates, size)].copy()  # torch takes no reversed view


def overlap_share(first: Array, second: Array) -> float:
    """Share of latents that two sets have in common, |A ∩ B| / max(|A|, |B|); NaN for two empty sets."""
    largest = max(len(first), len(second))
    return len(np.intersect1d(first, second)) / largest if largest else float("nan")


def mean_overlap(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Mean of `overlap_share` over pairs of sets, such as one per question; NaN where no pair has a latent."""
    shares = np.array([overlap_share(first, second) for first, second in pairs])
    return float(shares[~np.isnan(shares)].mean()) if (~np.isnan(shares)).any() else float("nan")


def parse_size(text: str) -> SetSize:
    """The size of a set as it is written on the command line.

    >>> parse_size("30"), parse_size("50%")
    (30, '50%')
    """
    if text == "50%":
        return "50%"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"k is {text!r}; expected a whole number from 1, or 50%.")
    return int(text)


def _count(candidates: Candidates, size: SetSize) -> int:
    return candidates.half_of_last if size == "50%" else size
