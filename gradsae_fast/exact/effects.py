"""Exact effects of removing latents from documents, measured in the very windows and batches that were scored.

What is removed is what a stored score speaks about. A token is scored in one window, so a latent is removed there in
that window; where later windows see the token again as context, it stays. Effects and values of a document are summed
over its windows, as its scores are.

Letters: P positions of one latent in a document, K removals, M documents of a segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gradsae_fast.ablate import Effects, Removal, ScoredWindow, ablate, scored_windows
from gradsae_fast.errors import ScoreError
from gradsae_fast.model.objectives import Objective
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Array, TokenDocument, Window
from gradsae_fast.store import StoredSegment

# By how much an objective's value may differ from the stored one, relative to it (or to 1): what rounding may cause.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Place(NamedTuple):
    """What an objective has one value for: a document of the segment, at one site."""

    slot: int
    site: str
    objective: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentRemoval:
    """One latent, and the positions of a document at which its activation is set to 0."""

    latent: int
    position_P: Array  # int64, ascending; the latent is active there


def document_effects(
    prepared: Prepared,
    documents: Sequence[TokenDocument],
    removals: Mapping[Place, Sequence[DocumentRemoval]],
    *,
    tokens_per_pass: int = 8192,
) -> dict[Place, Effects]:
    """For each place, its objective's value with nothing removed, and what each of its removals takes from it.

    `documents` are all documents of a segment, so that batches are filled as they were scored. `continuation-prob`
    is measured as log p, as its value is stored. Objectives whose places have one and the same list of removals share
    its passes. A pass of ablated copies holds at most `tokens_per_pass` tokens.

    Raises:
        ScoreError: a removal names a latent that is not active where it should be.
    """
    totals = {place: Effects(value=0.0, drop_K=np.zeros(len(listed))) for place, listed in removals.items()}
    slots = {place.slot for place in removals}
    windows = [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]
    for batch in prepared.batches(windows):
        rows = [row for row, window in enumerate(batch.windows) if window.slot in slots]
        if not rows:
            continue
        for scored in scored_windows(prepared.lm, prepared.sited, prepared.method, batch):
            for row in rows:
                for listed, places in _lists(prepared, scored[row], removals):
                    found = _in_window(prepared, scored[row], listed, list(places.values()), tokens_per_pass)
                    for place in places:
                        totals[place] = _sum(totals[place], found[place.objective])
    return totals


def _lists(
    prepared: Prepared, scored: ScoredWindow, removals: Mapping[Place, Sequence[DocumentRemoval]]
) -> list[tuple[Sequence[DocumentRemoval], dict[Place, Objective]]]:
    """The lists of removals at a window, each with its objectives: those that have one list in common share passes."""
    lists: dict[int, tuple[Sequence[DocumentRemoval], dict[Place, Objective]]] = {}
    for objective in prepared.objectives:
        place = Place(scored.window.slot, scored.sited.site.path, objective.name)
        if place in removals:
            lists.setdefault(id(removals[place]), (removals[place], {}))[1][place] = objective
    return list(lists.values())


def _sum(a: Effects, b: Effects) -> Effects:
    return Effects(value=a.value + b.value, drop_K=a.drop_K + b.drop_K)


def check_values(prepared: Prepared, segment: StoredSegment, effects: Mapping[Place, Effects]) -> float:
    """The largest |value now - value stored| / max(1, |stored|) of these places; 0 without any.

    Raises:
        ScoreError: it is more than rounding: this run would not measure the scores that are stored.
    """
    limit = _TOLERANCE[prepared.lm.dtype]
    largest = 0.0
    for place, found in effects.items():
        stored = float(segment.values_of(place.objective, place.site)[place.slot])
        deviation = abs(found.value - stored) / max(1.0, abs(stored))
        if not deviation <= limit:
            raise ScoreError(
                f"{place.objective} of document {segment.document_keys()[place.slot]!r} at {place.site} is "
                f"{found.value:.6g} in this run, but {stored:.6g} in the store; expected a relative difference of at "
                f"most {limit:g}. Run on the device and with the library versions that made the store."
            )
        largest = max(largest, deviation)
    return largest


def _in_window(
    prepared: Prepared,
    scored: ScoredWindow,
    removals: Sequence[DocumentRemoval],
    objectives: Sequence[Objective],
    tokens_per_pass: int,
) -> dict[str, Effects]:
    """The effects of one window by objective; 0 for a removal that does not touch what it scores."""
    inside = [_inside(removal.position_P, scored.window) for removal in removals]
    touched = [index for index, position_P in enumerate(inside) if len(position_P)]
    found = ablate(
        prepared.lm,
        scored,
        [Removal(latent=removals[index].latent, position_P=inside[index]) for index in touched],
        objectives,
        tokens_per_pass=tokens_per_pass,
        chunk=prepared.config.run.head_chunk_tokens,
    )
    effects = {name: Effects(value=one.value, drop_K=np.zeros(len(removals))) for name, one in found.items()}
    for name, one in found.items():
        effects[name].drop_K[touched] = one.drop_K
    return effects


def _inside(position_P: Array, window: Window) -> Array:
    """Positions in the window of those positions in its document that the window scores."""
    shifted_P = position_P - window.first_position
    return shifted_P[(shifted_P >= 0) & (shifted_P < window.num_scored)] + window.num_context
