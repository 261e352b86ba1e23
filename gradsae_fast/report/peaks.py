"""One walk over the tokens of a store: for every shown latent its histograms and the tokens on which it peaks.

Letters: L shown latents, Z entries of a run of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradsae_fast.records import Array
from gradsae_fast.report.entries import Entries, SegmentEntries
from gradsae_fast.report.histogram import Histograms
from gradsae_fast.report.subject import Subject

ENDS = ("raising", "lowering", "activation")
"""The lists of peaks: largest influence above zero, most negative influence, largest activation."""

HIT = np.dtype(
    [("row", "i8"), ("segment", "i8"), ("token", "i8"), ("order", "f8"), ("influence", "f8"), ("activation", "f8")]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peaks:
    """What one walk found for L latents."""

    influence: Histograms
    activation: Histograms
    hits: Mapping[str, Array]  # of ENDS: HIT [rows], by latent and falling order
    num_values_L: Array  # int64, counted tokens on which the latent is active
    num_nonfinite_L: Array  # int64, of them left out: influence or activation is not finite

    def lists(self, row: int) -> dict[str, Array]:
        """Return the hits of one latent, for each of ENDS."""
        edges = {end: np.searchsorted(hits["row"], [row, row + 1]) for end, hits in self.hits.items()}
        return {end: self.hits[end][first:last] for end, (first, last) in edges.items()}


def find_peaks(subject: Subject, k: int) -> Peaks:
    """Walk over all tokens once, keeping the first k of every list; ties stay in corpus order."""
    num_latents, rows_C = len(subject.latents), subject.rows_C
    influence, activation = Histograms(num_latents), Histograms(num_latents)
    leaders = {end: _Leaders(num_latents, k, -np.inf if end == "activation" else 0.0) for end in ENDS}
    num_values, num_nonfinite = np.zeros(num_latents, np.int64), np.zeros(num_latents, np.int64)
    for number, segment in enumerate(subject.store.segments):
        for entries in SegmentEntries(segment, subject.question, rows_C).runs():
            finite_Z = np.isfinite(entries.influence_Z) & np.isfinite(entries.activation_Z)
            num_values += np.bincount(entries.row_Z, minlength=num_latents)
            num_nonfinite += np.bincount(entries.row_Z[~finite_Z], minlength=num_latents)
            row_Z, influence_Z = entries.row_Z[finite_Z], entries.influence_Z[finite_Z]
            influence.add(row_Z, influence_Z)
            activation.add(row_Z, entries.activation_Z[finite_Z])
            orders = {"raising": influence_Z, "lowering": -influence_Z, "activation": entries.activation_Z[finite_Z]}
            for end, order_Z in orders.items():
                leaders[end].add(number, entries, finite_Z, order_Z)
    return Peaks(
        influence=influence,
        activation=activation,
        hits={end: found.hits for end, found in leaders.items()},
        num_values_L=num_values,
        num_nonfinite_L=num_nonfinite,
    )


class _Leaders:
    """The first k tokens of each latent in one order, of those that are above a floor."""

    def __init__(self, num_latents: int, k: int, floor: float) -> None:
        self._k = k
        self._needed_L = np.full(num_latents, floor)  # only more than this changes a list
        self.hits = np.zeros(0, HIT)

    def add(self, segment: int, entries: Entries, finite_Z: Array, order_Z: Array) -> None:
        row_Z = entries.row_Z[finite_Z]
        keep_Z = order_Z > self._needed_L[row_Z]
        if not keep_Z.any():
            return
        new = np.zeros(int(keep_Z.sum()), HIT)
        new["row"], new["segment"], new["order"] = row_Z[keep_Z], segment, order_Z[keep_Z]
        for name in ("token", "influence", "activation"):
            new[name] = getattr(entries, f"{name}_Z")[finite_Z][keep_Z]
        hits = np.concatenate([self.hits, new])
        hits = hits[np.lexsort((hits["token"], hits["segment"], -hits["order"], hits["row"]))]
        place = np.arange(len(hits)) - np.searchsorted(hits["row"], hits["row"])
        last = hits[place == self._k - 1]
        self._needed_L[last["row"]] = last["order"]
        self.hits = hits[place < self._k]
