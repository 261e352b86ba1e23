"""The latents that matter most to a document, to a group of documents, or to the whole corpus."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.answer import build_table
from gradsae_fast.ranking.index.totals import LatentTotals, read_totals
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.ranking.selection import Selection, keys_of, select
from gradsae_fast.ranking.tally import tally
from gradsae_fast.store import ScoreStore

__all__ = ["LatentTotals", "rank_latents"]


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
    asked: dict[str, Any] = {"by": by, "k": k, "site": site, "objective": objective, "include_special": include_special}
    question = resolve(store, **asked, exact_dense=exact_dense, polarity=polarity)
    totals = None if document is not None or where is not None else read_totals(store, question)
    if totals is None:
        totals = _add_up(store, select(store, document=document, where=where), question)
    _refuse_nothing(totals)
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


def _add_up(store: ScoreStore, selection: Selection, question: Question) -> LatentTotals:
    totals = LatentTotals(question)
    for segment, slots in selection:
        totals.add(tally(store, segment, slots, question))
    return totals


def _refuse_nothing(totals: LatentTotals) -> None:
    if totals.num_tokens == 0:
        raise QueryError("the chosen documents have no counted token; choose others, or pass include_special=True")
