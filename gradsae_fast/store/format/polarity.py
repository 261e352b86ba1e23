"""The two sides of a signed latent: the tokens on which it is positive, and those on which it is negative.

Signed SAEs have them (AbsTopK, Bi-JumpReLU), and so has every score against a patch text. A NaN is on neither side.
Z non-zeros, N tokens.
"""

import numpy as np

from gradsae_fast.records import Array, SparseScores

POLARITIES = ("positive", "negative")


def has_polarity(activation_Z: Array, polarity: str | None) -> Array:
    """Return which activations are on the side that is asked for (None: all of them), bool [Z]."""
    if polarity is None:
        return np.ones(len(activation_Z), bool)
    side_Z: Array = activation_Z > 0 if polarity == "positive" else activation_Z < 0
    return side_Z


def turned(values: Array, polarity: str | None) -> Array:
    """Return the values, of the negative side their negatives, so that the largest is the strongest; a 0 is +0 then."""
    return 0 - values if polarity == "negative" else values


def one_side(scores: SparseScores, polarity: str) -> SparseScores:
    """Return the scores of one side, as if the other had never been active."""
    keep_Z = has_polarity(scores.activation, polarity)
    kept_before = np.concatenate([[0], np.cumsum(keep_Z, dtype=np.int64)])
    return SparseScores(
        indptr=kept_before[scores.indptr],
        indices=scores.indices[keep_Z],
        activation=scores.activation[keep_Z],
        projections={name: values[keep_Z] for name, values in scores.projections.items()},
        num_latents=scores.num_latents,
    )
