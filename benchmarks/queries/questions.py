"""What is asked of a store, and about what."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gradsae_fast.ranking import contrast, rank_documents, rank_latents, rank_tokens
from gradsae_fast.store import ScoreStore

ROWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """What the questions are about."""

    document: str
    frequent: int  # the latent with most tokens
    median: int  # the one in the middle of those that fire
    a: str  # conditions of the two groups
    b: str


def find_subjects(store: ScoreStore, a: str, b: str) -> Subjects:
    """Choose the middle document, and latents by how often they fire."""
    latents = rank_latents(store, by="frequency", k=None)["latent"].to_numpy()
    middle = store.segments[len(store.segments) // 2]
    return Subjects(
        document=middle.key_of(middle.num_documents // 2),
        frequent=int(latents[0]),
        median=int(latents[np.size(latents) // 2]),
        a=a,
        b=b,
    )


def questions(subjects: Subjects) -> dict[str, Callable[[ScoreStore], pa.Table | None]]:
    """Every question by its name; each is asked of a store that was just opened."""
    frequent, median = subjects.frequent, subjects.median
    return {
        "open": lambda store: None,
        "latents of a document": lambda store: rank_latents(store, document=subjects.document, k=ROWS),
        "tokens of a frequent latent": lambda store: rank_tokens(store, latent=frequent, k=ROWS),
        "tokens of a median latent": lambda store: rank_tokens(store, latent=median, k=ROWS),
        "tokens of a latent in a group": lambda store: rank_tokens(store, latent=frequent, where=subjects.a, k=ROWS),
        "documents of a frequent latent": lambda store: rank_documents(store, latent=frequent, k=ROWS),
        "latents of the corpus": lambda store: rank_latents(store, k=ROWS),
        "latents of a group": lambda store: rank_latents(store, where=subjects.a, k=ROWS),
        "contrast of two groups": lambda store: contrast(store, a=subjects.a, b=subjects.b, k=ROWS),
    }


GOALS = {  # seconds, of a store opened anew
    "latents of a document": 0.02,
    "tokens of a frequent latent": 0.05,
    "tokens of a median latent": 0.05,
    "latents of the corpus": 1.0,
    "contrast of two groups": 1.0,
}
