"""The latents that matter most to a document, to a group of documents, or to the whole corpus."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table, first_k
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.ranking.selection import Selection, keys_of, select
from gradsae_fast.ranking.tally import Tally, group_maximum, tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.polarity import turned


def rank_latents(
    store: ScoreStore,
    *,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    by: str = "influence",
    k: int | None = 20,
    site: str | None = None,
    objective: str | None = None,
    smallest: bool = False,
    include_special: bool | None = None,
    exact_dense: bool = False,
    polarity: str | None = None,
) -> pa.Table:
    """Rank the latents of the chosen documents (all of them, unless `document` or `where` is given).

    `by` decides the column `score`, a sum over the counted tokens of the chosen documents:
    influence (sum of g), positive (of max(g, 0)), absolute (of |g|), activation (of a); or frequency (active tokens /
    counted tokens). Latents that never fire there are not listed; ties go to the smaller latent. The paper's score is
    `mean_score` by influence; the one of its authors' code is `mean_score` by positive.

    Args:
        document: a document key, or several.
        store, by, k, site, objective, include_special, exact_dense, polarity: see `question.resolve`.
        where: a condition on document metadata, like "party=Republican, year>=1950".
        smallest: plain ascending order instead: by influence, the most negative first. The paper's BottomK, the
            smallest positive ones, is the tail of the default order above score 0.

    Returns:
        rank, latent, score, mean_score (per counted token; a frequency is one already), influence, positive, absolute,
        activation, num_active (tokens), frequency, max_influence, max_activation (over tokens; of the negative
        polarity the most negative), num_documents (in which it fires), and exact where it was asked for. Units and
        counts are in the schema metadata (see `answer`).

    Raises:
        QueryError: a name is unknown, k is below 1, no chosen token is counted, or the store has no exact effects.
    """
    question = resolve(
        store,
        by=by,
        k=k,
        site=site,
        objective=objective,
        include_special=include_special,
        exact_dense=exact_dense,
        polarity=polarity,
    )
    totals = _add_up(store, select(store, document=document, where=where), question)
    return build_table(
        totals.columns(smallest=smallest),
        ranking="latents",
        store=store,
        question=question,
        num_documents=totals.num_documents,
        num_tokens=totals.num_tokens,
        document=keys_of(document),
        where=where,
        smallest=smallest,
    )


def _add_up(store: ScoreStore, selection: Selection, question: Question) -> "LatentTotals":
    """The sums over the chosen documents. QueryError where they have no counted token."""
    totals = LatentTotals(question)
    for segment, slots in selection:
        totals.add(tally(store, segment, slots, question))
    if totals.num_tokens == 0:
        raise QueryError("the chosen documents have no counted token; choose others, or pass include_special=True")
    return totals


class LatentTotals:
    """Sums over documents for each of C latents, in float64."""

    def __init__(self, question: Question) -> None:
        num_latents = question.num_latents
        self.question = question
        self.num_tokens = 0
        self.num_documents = 0
        self.num_active = np.zeros(num_latents, np.int64)
        self.active_documents = np.zeros(num_latents, np.int64)
        self.sums = {name: np.zeros(num_latents) for name in ("influence", "positive", "absolute", "activation")}
        self.max_influence = np.full(num_latents, -np.inf)
        self.max_activation = np.full(num_latents, -np.inf)  # turned: of the negative polarity the largest -a

    def add(self, part: Tally) -> None:
        """Add the documents of one segment."""
        num_latents = len(self.num_active)
        self.num_tokens += int(part.num_tokens_S.sum())
        self.num_documents += int(np.count_nonzero(part.num_tokens_S))
        np.add.at(self.num_active, part.latent_P, part.num_active_P)
        self.active_documents += np.bincount(part.latent_P, minlength=num_latents)
        for name, total in self.sums.items():
            total += np.bincount(part.latent_P, part.amount_P(name), num_latents)
        activation_P = turned(part.max_activation_P, self.question.polarity)
        for largest, value_P in ((self.max_influence, part.max_influence_P), (self.max_activation, activation_P)):
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
