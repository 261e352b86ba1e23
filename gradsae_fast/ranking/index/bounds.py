"""How far a latent's values reach in each segment: what lets a ranking of tokens pass segments over.

The index keeps, for every latent and segment, bounds of the activations and influences on the tokens that count in the
store's own sums, side by side for all segments: one chunk is read to rank the segments of a latent. They are rounded
outward to 8 significant bits, which is all that passing over needs, and hold for any choice of documents and for either
polarity.

Letters: C latents, L of a run of latents, Z their non-zeros, S segments.
"""

from dataclasses import dataclass

import numba
import numpy as np

from gradsae_fast.records import Array
from gradsae_fast.store.format.layout import ArraySpec, component, path_of, place
from gradsae_fast.store.sidecars.index import Placed, StoreIndex

_LOWEST = -float(np.finfo(np.float64).max)


def _spec(name: str, meaning: str) -> ArraySpec:
    said = f"{meaning} on the tokens that count, entry c·S + s for latent c and segment s, rounded outward"
    return ArraySpec(name=name, dtype="float32", dims=("latent_segment",), meaning=said)


BOUNDS = (
    _spec("max_activation", "at least max a; -Inf: never active, Inf: a NaN or Inf was met"),
    _spec("min_activation", "at most min a"),
    _spec("max_influence/{objective}", "at least max g, in the objective's unit"),
    _spec("min_influence/{objective}", "at most min g"),
    _spec("max_document_activation", "at least the largest Σ a of a document"),
    _spec("max_document_absolute/{objective}", "at least the largest Σ |g| of a document"),
    _spec("max_document_influence/{objective}", "at least the largest Σ g of a document"),
    _spec("min_document_influence/{objective}", "at most the smallest Σ g of a document"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Of one latent and value in each segment, float64 [S]; a segment where the latent is silent has -inf and inf."""

    low_S: Array
    high_S: Array
    silent_S: Array  # bool

    def of_order(self, by: str, *, smallest: bool) -> Array:
        """Return upper bounds of what tokens are put in order by, largest first: -inf where the latent is silent."""
        low_S, high_S = self.low_S, self.high_S
        if by == "positive":
            low_S, high_S = np.maximum(low_S, 0), np.maximum(high_S, 0)
        if by == "absolute":
            low_S, high_S = np.maximum(np.maximum(low_S, -high_S), 0), np.maximum(high_S, -low_S)
        order_S = -low_S if smallest else high_S
        return np.where(self.silent_S, -np.inf, np.maximum(order_S, _LOWEST))


def read_bounds(index: StoreIndex, site: str, objective: str, latent: int, by: str) -> Bounds:
    """Read the bounds of a latent's influence (or activation, by activation) in each segment."""
    max_activation_S = _row(index, site, objective, latent, "max_activation")
    if by == "activation":
        low_S, high_S = _row(index, site, objective, latent, "min_activation"), max_activation_S
    else:
        low_S, high_S = (
            _row(index, site, objective, latent, f"{end}_influence/{{objective}}") for end in ("min", "max")
        )
    return Bounds(low_S=low_S, high_S=high_S, silent_S=max_activation_S == -np.inf)


def read_document_bounds(
    index: StoreIndex, site: str, objective: str, latent: int, by: str, *, smallest: bool
) -> Array | None:
    """Return upper bounds float64 [S] of what a segment's documents are put in order by; None where none are kept.

    Of sums over all counted tokens of a document, of both polarities: -inf where the latent is silent.
    """
    names = {
        ("influence", False): "max_document_influence/{objective}",
        ("influence", True): "min_document_influence/{objective}",
        ("positive", False): "max_document_absolute/{objective}",
        ("absolute", False): "max_document_absolute/{objective}",
        ("activation", False): "max_document_activation",
    }
    if (by, smallest) not in names:
        return None
    bound_S = _row(index, site, objective, latent, names[by, smallest])
    silent_S = _row(index, site, objective, latent, "max_activation") == -np.inf
    return np.where(silent_S, -np.inf, np.maximum(-bound_S if smallest else bound_S, _LOWEST))


def _row(index: StoreIndex, site: str, objective: str, latent: int, name: str) -> Array:
    path = path_of(name, objective) if "{" in name else name
    num_segments = len(index.summaries)
    stored = index.array(f"sites/{component(site)}/bounds/{path}")
    return stored.read(latent * num_segments, (latent + 1) * num_segments).astype(np.float64)


class BoundsOfSite:
    """Collects the bounds of a site, run by run of latents: float32 [C, S] of each kind."""

    def __init__(self, num_latents: int, num_segments: int, objectives: list[str]) -> None:
        self._num_latents = num_latents
        shape = (num_latents, num_segments)
        self._bounds: dict[str, dict[str, Array]] = {
            spec.name: {
                name: np.full(shape, -np.inf if spec.name.startswith("max") else np.inf, np.float32)
                for name in (objectives if "{" in spec.name else [""])
            }
            for spec in BOUNDS
        }

    def add(
        self,
        segment: int,
        start: int,
        edges_L: Array,
        document_Z: Array,
        activation_Z: Array,
        influences: dict[str, Array],
    ) -> None:
        """Set those of a run of latents from `start` on in the segment of this position; values of counted tokens.

        Args:
            segment, start: where they belong.
            edges_L: int64 [L+1], borders of the latents.
            document_Z: their documents, ascending inside a latent.
            activation_Z, influences: float64, influences by objective in their unit.
        """
        token_Z = np.arange(len(document_Z))
        place = (slice(start, start + len(edges_L) - 1), segment)
        self._set("activation", "", place, _extremes(edges_L, token_Z, activation_Z))
        self._set("document_activation", "", place, _extremes(edges_L, document_Z, activation_Z))
        for name, influence_Z in influences.items():
            self._set("influence", name, place, _extremes(edges_L, token_Z, influence_Z))
            self._set("document_influence", name, place, _extremes(edges_L, document_Z, influence_Z))
            self._set("document_absolute", name, place, _extremes(edges_L, document_Z, np.abs(influence_Z)))

    def arrays(self, site: str) -> Placed:
        """Yield them as arrays of the index."""
        values: dict[str, Array | dict[str, Array]] = {
            kind: {name: bound_CS.ravel() for name, bound_CS in bounds.items()} if "{" in kind else bounds[""].ravel()
            for kind, bounds in self._bounds.items()
        }
        yield from place(f"sites/{component(site)}/bounds", BOUNDS, values)

    def _set(self, kind: str, objective: str, place: tuple[slice, int], ends: tuple[Array, Array]) -> None:
        suffix = "/{objective}" if objective else ""
        for end, value_L in (("min", -_outward(-ends[0])), ("max", _outward(ends[1]))):
            if f"{end}_{kind}{suffix}" in self._bounds:
                self._bounds[f"{end}_{kind}{suffix}"][objective][place] = value_L


def _outward(values: Array) -> Array:
    """Round up to float32 numbers of 8 significant bits (the leading one included)."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    near = np.where(near < values, np.nextafter(near, np.float32(np.inf)), near)
    bits = near.view(np.uint32)
    return np.where(near > 0, (bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000), bits & np.uint32(0xFFFF0000)).view(
        np.float32
    )


@numba.njit(nogil=True, cache=True)
def _extremes(edges: Array, group: Array, values: Array) -> tuple[Array, Array]:
    """Find each latent's least and largest sum over a run of equal groups; what is not finite is bounded by nothing.

    Sums run in float64 in the order of the values, as rankings add them.
    """
    low, high = np.full(len(edges) - 1, np.inf), np.full(len(edges) - 1, -np.inf)
    for c in range(len(edges) - 1):
        total = 0.0
        for z in range(edges[c], edges[c + 1]):
            total = total + values[z] if z > edges[c] and group[z] == group[z - 1] else values[z]
            if not np.isfinite(total):
                low[c], high[c] = -np.inf, np.inf
                break
            if z + 1 == edges[c + 1] or group[z + 1] != group[z]:
                low[c] = min(low[c], total)
                high[c] = max(high[c], total)
    return low, high
