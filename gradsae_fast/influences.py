"""Influences that were computed in two ways, laid side by side.

Letters: N tokens, C latents, Z stored pairs of them.
"""

import numpy as np

from gradsae_fast.records import Array, SparseScores


class Influences:
    """Influences of some tokens as (token * C + latent, value), so that two ways to compute them can be compared."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.keys: list[Array] = []
        self.values: list[Array] = []

    def add_sparse(self, scores: SparseScores, objective: str) -> None:
        """Take in the scores of further tokens."""
        num_tokens = len(scores.indptr) - 1
        token_Z = np.repeat(np.arange(num_tokens), np.diff(scores.indptr))
        self._add(
            token_Z, scores.indices, scores.activation * scores.projections[objective], num_tokens, scores.num_latents
        )

    def add_dense(self, influence_NC: Array) -> None:
        """Take in the influences of further tokens, every latent of each."""
        token_Z, latent_Z = np.nonzero(influence_NC)
        self._add(token_Z, latent_Z, influence_NC[token_Z, latent_Z], *influence_NC.shape)

    def _add(self, token_Z: Array, latent_Z: Array, value_Z: Array, num_tokens: int, num_latents: int) -> None:
        self.keys.append((token_Z + self.num_tokens) * num_latents + latent_Z.astype(np.int64))
        self.values.append(value_Z.astype(np.float64))
        self.num_tokens += num_tokens

    def relative_difference(self, expected: "Influences") -> float:
        """Sum of differences over the sum of the expected magnitudes."""
        if not (self.keys and expected.keys):
            return 0.0
        _, group = np.unique(np.concatenate([*self.keys, *expected.keys]), return_inverse=True)
        expected_values = np.concatenate(expected.values)
        difference = np.bincount(group, np.concatenate([*self.values, -expected_values]))
        size = float(np.abs(expected_values).sum())
        return float(np.abs(difference).sum()) / size if size > 0 else float(np.abs(difference).sum())
