"""The checks at the door: what is asked for becomes a `Question` that the store can answer, or a `QueryError`."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking.exact import ExactEffects, find_exact
from gradsae_fast.records import Array
from gradsae_fast.spelling import did_you_mean
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.format.polarity import POLARITIES, has_polarity

SUMS = ("influence", "positive", "absolute", "activation", "frequency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which numbers of the store are asked for."""

    site: str
    objective: str
    by: str
    k: int | None  # None: all
    include_special: bool
    num_latents: int
    exact: ExactEffects | None = None  # in place of the sums of influence, for dense latents
    polarity: str | None = None  # only tokens on which the activation has this sign; None: both

    def takes(self, activation_Z: Array) -> Array:
        """Return which activations have the polarity that is asked for, bool [Z]."""
        return has_polarity(activation_Z, self.polarity)


def resolve(
    store: ScoreStore,
    *,
    by: str,
    k: int | None,
    site: str | None,
    objective: str | None,
    include_special: bool | None,
    allowed: Sequence[str] = SUMS,
    exact_dense: bool = False,
    polarity: str | None = None,
) -> Question:
    """Check the parts that every question has; a site or objective that is not given must be the store's only one.

    Args:
        store: an open store.
        by: what to rank by, one of `allowed`.
        k: how many rows; None for all.
        site, objective: needed where the store has several.
        include_special: count masked tokens (special tokens, attention sinks); None: as the store's own sums.
        exact_dense: by influence, take the exact effect of removing the latent for latents that fire nearly everywhere
            (the store must have been extracted with `exact_dense`), and add the column `exact`.
        polarity: of a signed SAE, count only tokens on which the latent is "positive", or only those where it is
            "negative" (its activation stays signed); None: both.

    Raises:
        QueryError: nothing is committed, a name is unknown or ambiguous, k is below 1, exact effects are asked for
            that the store does not have, or a polarity of an SAE whose latents have only one.

    """
    if not store.segments:
        raise QueryError(
            f"{store.path} has no committed segment; expected at least one; run the extraction again: it resumes"
        )
    if k is not None and k < 1:
        raise QueryError(f"got k = {k}; expected 1 or more, or None for all")
    chosen_site = _only("site", site, store.sites)
    chosen_objective = _only("objective", objective, store.objectives)
    one_of("by", by, allowed)
    if polarity is not None:
        _check_polarity(store, chosen_site, polarity, exact_dense)
    special = store.aggregates_include_special if include_special is None else include_special
    return Question(
        site=chosen_site,
        objective=chosen_objective,
        by=by,
        k=k,
        include_special=special,
        num_latents=store.num_latents(chosen_site),
        exact=find_exact(store, chosen_site, chosen_objective, by, special) if exact_dense else None,
        polarity=polarity,
    )


def _check_polarity(store: ScoreStore, site: str, polarity: str, exact_dense: bool) -> None:
    one_of("polarity", polarity, POLARITIES)
    if exact_dense:
        raise QueryError(
            "exact effects are of a latent as a whole, not of one polarity; ask for one of the two, exact or polarity"
        )
    if not any(segment.site(site).is_signed for segment in store.segments):
        raise QueryError(
            f"got polarity = {polarity!r}, but no activation at {site!r} is negative, so it has no effect; leave it out"
        )


def check_latent(latent: SupportsIndex, question: Question) -> int:
    """Return the latent as an int.

    Raises:
        QueryError: the site's SAE has no such latent.

    """
    number = operator.index(latent)
    if not 0 <= number < question.num_latents:
        raise QueryError(
            f"got latent {number}; expected 0 to {question.num_latents - 1}, "
            f"the {question.num_latents} latents of the SAE at {question.site!r}"
        )
    return number


def one_of(what: str, name: str, known: Sequence[str]) -> str:
    """Return the name if it is known.

    Raises:
        QueryError: it is not; the message has the closest known names.

    """
    if name in known:
        return name
    raise QueryError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")


def _only(what: str, name: str | None, known: Sequence[str]) -> str:
    if name is not None:
        return one_of(what, name, known)
    if len(known) != 1:
        raise QueryError(f"the store has {len(known)} {what}s; say which with {what}=: {', '.join(map(repr, known))}")
    return known[0]
