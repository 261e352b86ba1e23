"""What an audit is about: the question, the latents it shows and what is known of each before tokens are read.

C latents of the site's SAE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.ranking import query_of, rank_latents
from gradsae_fast.ranking.question import Question, check_latent, resolve
from gradsae_fast.records import Array
from gradsae_fast.report.contrasts import Contrasts, find_contrasts
from gradsae_fast.report.groups import find_groups
from gradsae_fast.report.labels import read_labels
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.sidecars.described import Described

DENSE = 0.2  # share of the counted tokens; a latent that fires on more has scores that are not to be trusted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """Everything that pages are made of but tokens and documents."""

    store: ScoreStore
    question: Question
    facts: Mapping[str, Any]  # `query_of` the ranking of latents
    totals: Mapping[str, Array]  # columns of `rank_latents` by absolute, all that fire: largest first
    latents: tuple[int, ...]  # those with a page, in order
    num_largest: int | None  # of them, the first so many by summed |influence|; None: all chosen by number
    labels: Mapping[int, str]
    contrasts: Contrasts
    too_small: tuple[str, ...]  # groups that are not compared
    described: Described | None
    vocabulary: Sequence[str]

    @property
    def rows_C(self) -> Array:
        """The page of each latent, counted from 0: int64 [C]; -1 for latents without one."""
        rows_C = np.full(self.question.num_latents, -1)
        rows_C[list(self.latents)] = np.arange(len(self.latents))
        return rows_C

    def total(self, latent: int) -> dict[str, Any] | None:
        """Return a latent's row of `totals`; None where it never fires."""
        found = np.flatnonzero(self.totals["latent"] == latent)
        return {name: column[found[0]].item() for name, column in self.totals.items()} if len(found) else None


def choose_subject(
    store: ScoreStore,
    *,
    latents: Sequence[SupportsIndex] | None,
    k: int,
    groups: Sequence[str | tuple[str, str]],
    labels: str | Path | None,
    site: str | None,
    objective: str | None,
) -> Subject:
    """Check what is asked for, rank the latents of the whole corpus by their summed |influence|, and contrast groups.

    A page is for the first k, and for those that contrasts begin with; with `latents` given, for these alone.

    Raises:
        QueryError: an unknown name or latent, a count below 1, or groups that cannot be made.
        ConfigError: labels that cannot be read.
    """
    question = resolve(store, by="absolute", k=k, site=site, objective=objective, include_special=None)
    chosen = None if latents is None else list(dict.fromkeys(check_latent(latent, question) for latent in latents))
    if chosen == []:
        raise QueryError("got an empty list of latents; expected at least one, or None for those that matter most")
    named = {} if labels is None else read_labels(Path(labels), question.num_latents)
    table = rank_latents(store, by="absolute", k=None, site=question.site, objective=question.objective)
    totals = {name: table[name].to_numpy() for name in table.column_names}
    grouping = find_groups(store, groups)
    contrasts = find_contrasts(store, question, grouping)
    largest = totals["latent"][:k].tolist()
    return Subject(
        store=store,
        question=question,
        facts=query_of(table),
        totals=totals,
        latents=tuple(dict.fromkeys([*largest, *contrasts.first_latents()]) if chosen is None else chosen),
        num_largest=len(largest) if chosen is None else None,
        labels=named,
        contrasts=contrasts,
        too_small=grouping.too_small,
        described=store.described(question.site),
        vocabulary=store.token_strings() or (),
    )
