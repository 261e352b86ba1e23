"""Where one latent is active: the counted tokens of the chosen documents of a segment.

Letters: N tokens of a segment, S chosen documents, P tokens on which the latent is active.
"""

from dataclasses import dataclass

import numpy as np

from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.tally import counted_tokens, document_scale, influence
from gradsae_fast.records import Array
from gradsae_fast.store.segment import StoredSegment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Postings:
    """One latent's entries in a segment, tokens ascending."""

    token_P: Array  # int64, row in the segment's token table
    slot_P: Array  # int64, document of the segment
    activation_P: Array  # float64
    projection_P: Array  # float64, in the objective's unit per unit of activation
    influence_P: Array  # float64, activation * projection multiplied in float32, in the objective's unit

    def value_P(self, by: str) -> Array:
        """Return what a token is ranked by."""
        values = {
            "influence": self.influence_P,
            "positive": np.maximum(self.influence_P, 0),
            "absolute": np.abs(self.influence_P),
            "activation": self.activation_P,
        }
        return values[by]


def read_postings(segment: StoredSegment, latent: int, slots_S: Array, question: Question) -> Postings:
    """Read one latent's entries on the counted tokens of the chosen documents."""
    token_P, activation_P, projections = segment.site(question.site).by_latent(latent)
    projection_P = projections[question.objective]
    document_N, counted_N = counted_tokens(segment, question)
    chosen_M = np.zeros(segment.num_documents, bool)
    chosen_M[slots_S] = True
    keep_P = counted_N[token_P] & chosen_M[document_N[token_P]] & question.takes(activation_P)
    slot_P = document_N[token_P[keep_P]]
    scale_P = document_scale(segment, question)[slot_P]
    return Postings(
        token_P=token_P[keep_P],
        slot_P=slot_P,
        activation_P=activation_P[keep_P].astype(np.float64),
        projection_P=projection_P[keep_P] * scale_P,
        influence_P=influence(activation_P, projection_P)[keep_P] * scale_P,
    )
