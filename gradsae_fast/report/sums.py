"""One walk over the document sums of a store: totals of every document.

Letters: M documents of the corpus, S of a segment, P pairs of a document and a latent.
"""

from dataclasses import dataclass

import numpy as np

from gradsae_fast.ranking.tally import Tally, tally
from gradsae_fast.records import Array
from gradsae_fast.report.subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentTotals:
    """Sums over the counted tokens and all latents of each document, corpus order."""

    segment_M: Array  # int64, position of the segment in the store
    slot_M: Array  # int64, position of the document in its segment
    num_tokens_M: Array  # int64, counted ones
    influence_M: Array  # float64, sum of g
    absolute_M: Array  # float64, sum of |g|


def read_sums(subject: Subject) -> DocumentTotals:
    """Walk over the segments once."""
    parts: list[dict[str, Array]] = []
    for number, segment in enumerate(subject.store.segments):
        slots_S = np.arange(segment.num_documents)
        parts.append(_document_sums(tally(subject.store, segment, slots_S, subject.question), number))
    return DocumentTotals(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _document_sums(part: Tally, number: int) -> dict[str, Array]:
    num_documents = len(part.num_tokens_S)
    return {
        "segment_M": np.full(num_documents, number),
        "slot_M": np.arange(num_documents),
        "num_tokens_M": part.num_tokens_S,
        "influence_M": np.bincount(part.row_P, part.amount_P("influence"), num_documents),
        "absolute_M": np.bincount(part.row_P, part.amount_P("absolute"), num_documents),
    }
