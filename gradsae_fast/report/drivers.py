"""The latents that drive a document, and the token on which each of them does so most.

Letters: D driving latents, C latents, Z entries of a run of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.ranking.answer import first_k
from gradsae_fast.ranking.tally import tally
from gradsae_fast.report.entries import Entries
from gradsae_fast.report.subject import Subject
from gradsae_fast.store.segment import StoredSegment

NUM_LATENTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A latent's sum over a document."""

    latent: int
    influence: float
    num_active: int  # counted tokens


def find_drivers(subject: Subject, segment: StoredSegment, slot: int) -> tuple[Driver, ...]:
    """Return the latents with the largest sums above zero, then those with the most negative ones."""
    part = tally(subject.store, segment, np.array([slot]), subject.question)
    influence_P, found = part.amount_P("influence"), list[Driver]()
    for smallest in (False, True):
        order = first_k(influence_P, part.latent_P, NUM_LATENTS, smallest=smallest)
        found += [
            Driver(
                latent=int(part.latent_P[at]),
                influence=float(influence_P[at]),
                num_active=int(part.amount_P("frequency")[at]),
            )
            for at in order
            if (influence_P[at] < 0 if smallest else influence_P[at] > 0)
        ]
    return tuple(found)


class Strongest:
    """The token on which each driver has the most influence of its sum's sign; the first of several."""

    def __init__(self, drivers: Sequence[Driver], num_latents: int) -> None:
        self._place_C = np.full(num_latents, -1)
        self._place_C[[driver.latent for driver in drivers]] = np.arange(len(drivers))
        self._sign_D = np.sign([driver.influence for driver in drivers])
        self._value_D = np.zeros(len(drivers))
        self.token_D = np.full(len(drivers), -1)  # row in the segment's token table

    def add(self, run: Entries) -> None:
        """Look at a later run of the document's tokens, whose rows are latents."""
        place_Z = self._place_C[run.row_Z]
        of_driver = place_Z >= 0
        place_Z, token_Z = place_Z[of_driver], run.token_Z[of_driver]
        value_Z = run.influence_Z[of_driver] * self._sign_D[place_Z]
        order = np.lexsort((token_Z, -value_Z, place_Z))
        place_D, first = np.unique(place_Z[order], return_index=True)
        best = order[first]
        larger = value_Z[best] > self._value_D[place_D]
        self._value_D[place_D[larger]] = value_Z[best][larger]
        self.token_D[place_D[larger]] = token_Z[best][larger]
