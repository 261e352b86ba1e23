"""Sums over documents for each latent, and the sums over the whole corpus that the index keeps.

Letters: C latents, P pairs of a document and a latent.
"""

from typing import Any

import numpy as np

from gradsae_fast.ranking.answer import first_k
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.tally import Tally, group_maximum
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.format.layout import ArraySpec, component, place
from gradsae_fast.store.format.polarity import turned
from gradsae_fast.store.sidecars.index import Placed, StoreIndex

_SUMS = ("influence", "positive", "absolute", "activation")
_COUNTS = ("num_active", "active_documents")
_MAXIMA = ("max_influence", "max_activation")


def _spec(name: str, dtype: str, meaning: str) -> ArraySpec:
    return ArraySpec(name=name, dtype=dtype, dims=("latent",), meaning=f"{meaning}, over all documents of the store")


TOTALS = (
    _spec("num_active", "int64", "counted tokens on which the latent is active"),
    _spec("active_documents", "int64", "documents with such a token"),
    _spec("influence", "float64", "Σ g"),
    _spec("positive", "float64", "Σ max(g, 0)"),
    _spec("absolute", "float64", "Σ |g|"),
    _spec("activation", "float64", "Σ a"),
    _spec("max_influence", "float64", "max g; -Inf where never active"),
    _spec("max_activation", "float64", "max a, of the negative polarity max -a; -Inf where never active"),
)


class LatentTotals:
    """Sums over documents for each of C latents, in float64."""

    def __init__(self, question: Question) -> None:
        num_latents = question.num_latents
        self.question = question
        self.num_tokens = 0
        self.num_documents = 0
        self.num_active = np.zeros(num_latents, np.int64)
        self.active_documents = np.zeros(num_latents, np.int64)
        self.sums = {name: np.zeros(num_latents) for name in _SUMS}
        self.max_influence = np.full(num_latents, -np.inf)
        self.max_activation = np.full(num_latents, -np.inf)  # turned: of the negative polarity the largest -a

    def add(self, part: Tally) -> None:
        """Add the documents of one segment."""
        num_latents = len(self.num_active)
        self.num_tokens += int(part.num_tokens_S.sum())
        self.num_documents += int(np.count_nonzero(part.num_tokens_S))
        np.add.at(self.num_active, part.latent_P, part.amount_P("frequency"))
        self.active_documents += np.bincount(part.latent_P, minlength=num_latents)
        with np.errstate(invalid="ignore"):  # numpy warns of the NaN that Inf and -Inf add up to, as they should
            for name, total in self.sums.items():
                total += np.bincount(part.latent_P, part.amount_P(name), num_latents)
        influence_P = part.amount_P("max_influence")
        activation_P = turned(part.amount_P("max_activation"), self.question.polarity)
        for largest, value_P in ((self.max_influence, influence_P), (self.max_activation, activation_P)):
            np.maximum(largest, group_maximum(part.latent_P, value_P, num_latents), out=largest)

    def columns(self, *, smallest: bool) -> dict[str, Array]:
        """Return the columns of the first k latents that fire, in order."""
        question = self.question
        frequency = self.num_active / self.num_tokens
        score = frequency if question.by == "frequency" else self.sums[question.by]
        active = np.flatnonzero(self.num_active)
        latent = active[first_k(score[active], active, question.k, smallest=smallest)]
        columns: dict[str, Any] = {
            "score": score,
            "mean_score": score if question.by == "frequency" else score / self.num_tokens,
            **self.sums,
            "num_active": self.num_active,
            "frequency": frequency,
            "max_influence": self.max_influence,
            "max_activation": turned(self.max_activation, question.polarity),
            "num_documents": self.active_documents,
        }
        exact = {} if question.exact is None else {"exact": question.exact.is_dense(latent)}
        return {"latent": latent} | {name: column[latent] for name, column in columns.items()} | exact


def total_arrays(totals: LatentTotals) -> Placed:
    """Yield the totals as arrays of the index."""
    values = {name: getattr(totals, name) for name in (*_COUNTS, *_MAXIMA)} | totals.sums
    yield from place(_group(totals.question), TOTALS, values)


def read_totals(store: ScoreStore, question: Question) -> LatentTotals | None:
    """Return the totals of all documents as the index has them, or None where it does not have these."""
    index = store.index
    special = question.include_special != store.aggregates_include_special
    if index is None or special or question.exact is not None or _group(question) not in index:
        return None
    return _read(index, question)


def _read(index: StoreIndex, question: Question) -> LatentTotals:
    totals = LatentTotals(question)
    totals.num_tokens = int(index.facts["counted"]["num_tokens"])
    totals.num_documents = int(index.facts["counted"]["num_documents"])
    found = {spec.name: index.array(f"{_group(question)}/{spec.name}").read() for spec in TOTALS}
    totals.num_active, totals.active_documents = (found[name] for name in _COUNTS)
    totals.max_influence, totals.max_activation = (found[name] for name in _MAXIMA)
    totals.sums = {name: found[name] for name in _SUMS}
    return totals


def _group(question: Question) -> str:
    """Where the totals of a question's site, objective and polarity lie in the index."""
    return f"sites/{component(question.site)}/totals/{component(question.objective)}/{question.polarity or 'both'}"
