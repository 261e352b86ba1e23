"""Texts to score, and influences as a dense matrix: of a batch's sparse scores, and of the oracle."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.positions import scored_positions
from gradsae_fast.records import Array, Batch, SparseScores
from gradsae_fast.reference import dense_influence
from gradsae_fast.score import SitedSae

MakeBatch = Callable[..., Batch]
TEXTS = [
    "The state of the union is strong.",
    "Peace abroad and work at home: that is our duty.",
    "naïve hopes become laws",
    "We must build roads and schools, for the children of this land. Taxes fall, farms grow.",
]


def dense(scores: SparseScores, objective: str) -> Array:
    """Influences [N, C]."""
    influence_NC = np.zeros((len(scores.indptr) - 1, scores.num_latents))
    row_Z = np.repeat(np.arange(len(influence_NC)), np.diff(scores.indptr))
    influence_NC[row_Z, scores.indices] = scores.activation * scores.projections[objective]
    return influence_NC


def oracle(lm: LanguageModel, one: SitedSae, method: Any, objective: Objective, batch: Batch) -> Array:
    influences = [dense_influence(lm, one, method, objective, window)[1].numpy() for window in batch.windows]
    return np.concatenate(influences)[scored_positions(batch)]
