"""Whether two variants found the same numbers; what disagrees is not timed.

Rounding may put a latent at its threshold into one active set and not into the other. Such pairs are counted, and what
the network sees after the splice is then another thing: the influences of that document are not compared. Everything
else must agree.

Letters: Z pairs, N tokens, C latents.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.peers.pairs import Pairs
from benchmarks.peers.workload import Array

EDGE = 1e-4  # of the largest activation: how near its threshold a latent is that may be in one set only
MOST_AT_EDGE = 1e-3  # of all pairs
TOLERANCE = 1e-3  # of the largest number of its kind


class WrongNumbers(ValueError):
    """A variant whose numbers are not those of the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well a variant agrees with the reference."""

    num_pairs: int  # that were compared
    num_at_edge: int  # pairs of one side only, all of them at their threshold
    num_switched: int  # documents with such a pair
    worst_activation: float  # largest difference, relative to the largest activation
    worst_influence: float | None  # the same of influences; None where there are none


def verify(name: str, found: Pairs, expected: Pairs, threshold_C: Array, document_N: Array) -> Agreement:
    """Compare two sets of pairs of the same tokens; `document_N` is the document of each token. Raises WrongNumbers."""
    _, here_Z, there_Z = np.intersect1d(found.key_Z, expected.key_Z, assume_unique=True, return_indices=True)
    scale = float(np.abs(expected.activation_Z).max())
    sides = ((found, here_Z), (expected, there_Z))
    alone_token_Z = np.concatenate([_alone(name, *side, threshold_C, scale) for side in sides])
    if len(alone_token_Z) > MOST_AT_EDGE * len(expected.key_Z) + 1:
        raise WrongNumbers(f"{name}: {len(alone_token_Z)} of {len(expected.key_Z)} pairs are in one active set only")
    activation = _worst(name, "activation", found.activation_Z[here_Z], expected.activation_Z[there_Z], scale)
    switched = np.unique(document_N[alone_token_Z])
    influence = None
    if found.influence_Z is not None and expected.influence_Z is not None:
        steady_Z = ~np.isin(document_N[found.token_Z[here_Z]], switched)
        pair = found.influence_Z[here_Z[steady_Z]], expected.influence_Z[there_Z[steady_Z]]
        influence = _worst(name, "influence", *pair, float(np.abs(expected.influence_Z).max()))
    return Agreement(
        num_pairs=len(here_Z),
        num_at_edge=len(alone_token_Z),
        num_switched=len(switched),
        worst_activation=activation,
        worst_influence=influence,
    )


def _alone(name: str, pairs: Pairs, common_Z: Array, threshold_C: Array, scale: float) -> Array:
    """Tokens of the pairs that are not common; WrongNumbers where one of them is not at its threshold."""
    alone_Z = np.ones(len(pairs.token_Z), bool)
    alone_Z[common_Z] = False
    distance_Z = np.abs(pairs.activation_Z[alone_Z] - threshold_C[pairs.latent_Z[alone_Z]])
    wrong = int((distance_Z > EDGE * scale).sum())
    if wrong:
        raise WrongNumbers(f"{name}: {wrong} pairs are in one active set only, and far from their thresholds")
    return pairs.token_Z[alone_Z]


def _worst(name: str, what: str, found_Z: Array, expected_Z: Array, scale: float) -> float:
    """The largest difference relative to `scale`; WrongNumbers where it is not small."""
    if not (len(found_Z) and np.isfinite(found_Z).all()):
        raise WrongNumbers(f"{name}: no {what} to compare, or one that is not finite")
    worst = float(np.abs(found_Z - expected_Z).max() / scale)
    if worst > TOLERANCE:
        raise WrongNumbers(f"{name}: an {what} is off by {worst:.1e} of the largest; expected {TOLERANCE:.0e} or less")
    return worst
