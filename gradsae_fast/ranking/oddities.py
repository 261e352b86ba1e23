"""Latents whose activity and influence do not go together, for an auditor to look at.

Letters: C latents; a, g activation and influence at a token; d_c the decoder row of latent c; n_c counted tokens on
which c is active; S chosen documents of a segment, P pairs of a chosen document and a latent that is active in it.

**Idle**: it writes much, and that hardly matters. What c writes at a token is a vector of length |a|·‖d_c‖: that length
compares across latents, whose activations have units of their own, and is what a plain `a` means where decoder rows
have length 1. Its share of all that is written, against its share of all influence:

    activation_share = Σ|a|·‖d_c‖ / Σ_c Σ|a|·‖d_c‖        influence_share = Σ|g| / Σ_c Σ|g|
    score            = activation_share / influence_share

Both shares add up to 1 and do not change with the unit of the objective. |g|, so that effects of both signs do not pass
for none. Listed are latents of high activation only: at least an even share (1 / number of latents that fire).

**Decisive**: it is rarely active, and matters much where it is:

    score = (Σ|g| - Σ|g| in its strongest document) / (n_c - n_c in that document)

the mean |g| per active token without the document that holds most of its |g|: one freak token, or one document full of
them, leads no list. Listed are latents on at most `max_frequency` of the tokens.

Influence is a first-order estimate: a large one is a reason to look, and exact ablation is the proof.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.method import influence_unit
from gradsae_fast.ranking.answer import build_table, first_k
from gradsae_fast.ranking.question import Question, one_of, resolve
from gradsae_fast.ranking.selection import Selection, keys_of, select
from gradsae_fast.ranking.tally import Tally, group_maximum, tally
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.format.polarity import POLARITIES
from gradsae_fast.store.segment import StoredSegment

KINDS = ("idle", "decisive")
MAX_FREQUENCY = 0.01
MIN_DOCUMENTS = 3
_SUMS = ("written", "influence", "absolute")


def rank_oddities(
    store: ScoreStore,
    *,
    kind: str = "idle",
    k: int | None = 20,
    min_active: int = 10,
    min_documents: int | None = None,
    max_frequency: float | None = None,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    site: str | None = None,
    objective: str | None = None,
    include_special: bool | None = None,
) -> pa.Table:
    """List the latents that are active and idle, or rare and decisive, in the chosen documents.

    Args:
        kind: idle or decisive, as the module's docstring defines them.
        store, k, site, objective, include_special: what every question has, see `question.resolve`.
        min_active: tokens on which a listed latent is active at least: a mean over fewer says little.
        min_documents: of decisive ones, documents in which it fires, 2 or more (default 3: one is left out of the
            score, and what remains should not be one document's affair).
        max_frequency: of decisive ones, active on at most this share of the counted tokens (default 0.01).
        document, where: a document key or several, and a condition on document metadata.

    Returns:
        rank, latent, score (idle: a quotient, inf where all its influences are 0; decisive: the objective's unit per
        active token), activation_share, influence_share, influence (sum of g), absolute (sum of |g|), mean_absolute
        (per active token, no document left out), num_active (tokens), frequency, num_documents (in which it fires).
        Ties go to the smaller latent. The metadata has `kind`, the floors, `num_candidates` (latents that pass them)
        and `written`: what activation_share is a share of, |activation| alone where the store has no decoder norms.

    Raises:
        QueryError: a name is unknown, a floor makes no sense or has no effect, or no chosen token is counted.
    """
    one_of("kind", kind, KINDS)
    question = resolve(store, by="absolute", k=k, site=site, objective=objective, include_special=include_special)
    floors = _floors(kind, min_active, min_documents, max_frequency)
    account = _add_up(store, select(store, document=document, where=where), question)
    columns = account.columns(kind)
    candidates = np.flatnonzero(_is_candidate(columns, kind, floors))
    latent = candidates[first_k(columns["score"][candidates], candidates, k)]
    return build_table(
        {"latent": latent} | {name: column[latent] for name, column in columns.items()},
        ranking="oddities",
        store=store,
        question=question,
        kind=kind,
        **_units(store, question, kind),
        **floors,
        num_candidates=len(candidates),
        num_documents=account.num_documents,
        num_tokens=account.num_tokens,
        document=keys_of(document),
        where=where,
    )


def _add_up(store: ScoreStore, selection: Selection, question: Question) -> "Account":
    account, norm_C = Account(question.num_latents), store.decoder_norms(question.site)
    for segment, slots in selection:
        part = tally(store, segment, slots, question)
        account.add(part, _written(store, segment, slots, question, part, norm_C))
    if account.num_tokens == 0:
        raise QueryError("the chosen documents have no counted token; choose others, or pass include_special=True")
    return account


def _units(store: ScoreStore, question: Question, kind: str) -> dict[str, str]:
    has_norms = store.decoder_norms(question.site) is not None
    per_active = f"{influence_unit(question.objective)} per active token"
    return {
        "unit": "activation share / influence share" if kind == "idle" else per_active,
        "written": "|activation| * norm of the decoder row" if has_norms else "|activation|",
    }


class Account:
    """What each of C latents wrote and what came of it, summed over documents in float64."""

    def __init__(self, num_latents: int) -> None:
        self.num_tokens = 0
        self.num_documents = 0
        self.num_active = np.zeros(num_latents, np.int64)
        self.active_documents = np.zeros(num_latents, np.int64)
        self.sums = {name: np.zeros(num_latents) for name in _SUMS}
        self.strongest = np.zeros(num_latents)  # Σ|g| in the document where that is largest
        self.strongest_active = np.zeros(num_latents, np.int64)  # n_c in that document

    def add(self, part: Tally, written_C: Array) -> None:
        """Add the documents of one segment."""
        num_latents = len(self.num_active)
        self.num_tokens += int(part.num_tokens_S.sum())
        self.num_documents += int(np.count_nonzero(part.num_tokens_S))
        np.add.at(self.num_active, part.latent_P, part.amount_P("frequency"))
        self.active_documents += np.bincount(part.latent_P, minlength=num_latents)
        added = (written_C, *(np.bincount(part.latent_P, part.amount_P(by), num_latents) for by in _SUMS[1:]))
        with np.errstate(invalid="ignore"):  # numpy warns of the NaN that Inf and -Inf add up to, as they should
            for name, sums_C in zip(_SUMS, added, strict=True):
                self.sums[name] += sums_C
        self._keep_strongest(part)

    def _keep_strongest(self, part: Tally) -> None:
        """Look for documents that hold more of a latent's |g| than any before; of equal ones the least active."""
        absolute_P, num_latents = part.amount_P("absolute"), len(self.strongest)
        largest_C = group_maximum(part.latent_P, absolute_P, num_latents)
        at_P = absolute_P == largest_C[part.latent_P]
        fewest_C = np.full(num_latents, np.iinfo(np.int64).max)
        np.minimum.at(fewest_C, part.latent_P[at_P], part.amount_P("frequency")[at_P])
        equal_C = (largest_C == self.strongest) & (fewest_C < self.strongest_active)
        better_C = equal_C | (largest_C > self.strongest)
        self.strongest = np.where(better_C, largest_C, self.strongest)
        self.strongest_active = np.where(better_C, fewest_C, self.strongest_active)

    def columns(self, kind: str) -> dict[str, Array]:
        """Return the answer's columns for every latent [C]; a quotient without a divisor is inf, or NaN if 0 / 0."""
        written, absolute = self.sums["written"], self.sums["absolute"]
        with np.errstate(divide="ignore", invalid="ignore"):
            activation_share, influence_share = written / np.nansum(written), absolute / np.nansum(absolute)
            spread_out = (absolute - self.strongest) / (self.num_active - self.strongest_active)
            return {
                "score": activation_share / influence_share if kind == "idle" else spread_out,
                "activation_share": activation_share,
                "influence_share": influence_share,
                "influence": self.sums["influence"],
                "absolute": absolute,
                "mean_absolute": absolute / self.num_active,
                "num_active": self.num_active,
                "frequency": self.num_active / self.num_tokens,
                "num_documents": self.active_documents,
            }


def _written(
    store: ScoreStore, segment: StoredSegment, slots: Array, question: Question, part: Tally, norm_C: Array | None
) -> Array:
    """Return Σ|a|·‖d‖ of each latent over the chosen documents of a segment, float64 [C]; Σ|a| without norms."""
    parts = [part]
    if segment.site(question.site).is_signed:  # activations of two signs would cancel
        sides = (replace(question, polarity=side) for side in POLARITIES)
        parts = [tally(store, segment, slots, side, by="activation") for side in sides]
    summed = [np.bincount(side.latent_P, np.abs(side.amount_P("activation")), question.num_latents) for side in parts]
    written_C: Array = np.sum(summed, axis=0)
    return written_C if norm_C is None else written_C * norm_C


def _is_candidate(columns: dict[str, Array], kind: str, floors: dict[str, Any]) -> Array:
    """Return which latents may be listed, bool [C]."""
    often_enough = columns["num_active"] >= floors["min_active"]
    if kind == "idle":
        num_firing = np.count_nonzero(columns["num_active"])
        return often_enough & (columns["activation_share"] * num_firing >= 1)
    rare = columns["frequency"] <= floors["max_frequency"]
    return often_enough & rare & (columns["num_documents"] >= floors["min_documents"])


def _floors(kind: str, min_active: int, min_documents: int | None, max_frequency: float | None) -> dict[str, Any]:
    if min_active < 1:
        raise QueryError(f"got min_active = {min_active}; expected 1 or more tokens")
    if kind == "idle":
        for name, value in (("min_documents", min_documents), ("max_frequency", max_frequency)):
            if value is not None:
                raise QueryError(f"{name} has no effect on kind = 'idle'; leave it out, or ask for kind = 'decisive'")
        return {"min_active": min_active}
    min_documents = MIN_DOCUMENTS if min_documents is None else min_documents
    max_frequency = MAX_FREQUENCY if max_frequency is None else max_frequency
    if min_documents < 2:
        raise QueryError(f"got min_documents = {min_documents}; expected 2 or more: one is left out of the score")
    if not 0 < max_frequency <= 1:
        raise QueryError(f"got max_frequency = {max_frequency}; expected a share of the tokens, above 0 and at most 1")
    return {"min_active": min_active, "min_documents": min_documents, "max_frequency": max_frequency}
