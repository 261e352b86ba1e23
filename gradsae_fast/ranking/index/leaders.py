"""The leading tokens of every latent, kept in the index: of largest influence, of smallest, and of largest activation.

They answer what is asked most, the first k tokens of the whole store, without looking into any segment but for texts.
An answer is taken from them only where it is certain to be that of a full scan, ties included.

Letters: C latents, K leading tokens kept of each, E entries of all latents, L latents of a run, Z their non-zeros,
P leading tokens of one latent.
"""

from dataclasses import dataclass

import numba
import numpy as np

from gradsae_fast.ranking.question import Question
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.format.layout import ArraySpec, component, place
from gradsae_fast.store.sidecars.index import Placed, StoreIndex

MOST, FEWEST = 64, 20  # leading tokens of a latent; a store in which fewer would be kept keeps none
LIMIT = 256  # a place in a list is a number of 8 bits
_SHARE = 0.03  # of the store's non-zeros that the entries of one list may be, K·C
_MOST_ENTRIES = 1 << 22  # K·C: what bounds memory
LISTS = ("largest", "smallest", "strongest")


def _spec(name: str, dtype: str, meaning: str) -> ArraySpec:
    return ArraySpec(name=name, dtype=dtype, dims=("leader",), meaning=meaning)


EDGES = ArraySpec(
    name="indptr",
    dtype="int64",
    dims=("latent_edge",),
    meaning="leaders of latent c are entries indptr[c] to indptr[c+1]",
)
LEADERS = (
    _spec("segment", "uint32", "segment of the token"),
    _spec("token", "uint32", "row in its table of tokens"),
    _spec("document", "uint32", "its document in the segment"),
    _spec("position", "uint32", "position of the token in its document"),
    _spec("context", "uint32", "tokens of left context that the model saw"),
    _spec("mask", "uint8", "bits of TokenMask"),
    _spec("activation", "float32", "activation"),
    _spec("projection", "float32", "projection, as it is stored in the segment"),
    _spec("scale", "float64", "factor of the projection that gives the objective's unit"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaders:
    """Leading tokens of one latent, in order."""

    columns: dict[str, Array]  # by the names of LEADERS
    is_all: bool  # whether these are all its tokens

    def __len__(self) -> int:
        return len(self.columns["token"])


def num_leaders(num_nonzeros: int, num_latents: int) -> int:
    """Return K for a site: 0 in a store so small that the lists would be a good part of it.

    >>> num_leaders(10**8, 16_384), num_leaders(10**6, 16_384), num_leaders(10**11, 1 << 17)
    (64, 0, 32)
    """
    most = min(MOST, int(_SHARE * num_nonzeros) // num_latents, _MOST_ENTRIES // num_latents)
    return most if most >= FEWEST else 0


def read_leaders(index: StoreIndex, question: Question, latent: int, which: str) -> Leaders | None:
    """Read one list of a latent; None where the index has none of this site."""
    group = f"sites/{component(question.site)}/leaders"
    if group not in index:
        return None
    folder = f"{group}/{component(question.objective)}/{which}"
    index.expect(f"{folder}/{spec.name}" for spec in LEADERS)
    first, last = index.array(f"{group}/indptr").read(latent, latent + 2).tolist()
    columns = {spec.name: index.array(f"{folder}/{spec.name}").read(first, last) for spec in LEADERS}
    return Leaders(columns=columns, is_all=last - first < index.facts["leaders"][question.site])


def needed_lists(question: Question, *, smallest: bool) -> tuple[str, ...]:
    """Return the lists that together hold the first tokens of an order; none where the lists say nothing of it."""
    if not smallest:
        lists = {"influence": LISTS[:1], "positive": LISTS[:1], "absolute": LISTS[:2], "activation": LISTS[2:]}
        return lists[question.by]
    return LISTS[1:2] if question.by == "influence" else ()


def are_of(store: ScoreStore, question: Question) -> bool:
    """Whether the lists are of the tokens that a question about all documents is about."""
    return question.polarity is None and question.include_special == store.aggregates_include_special


class LeadersOfSite:
    """Collects the leading tokens of a site and objective, segment by segment and run by run of latents."""

    def __init__(self, num_latents: int, num_leaders: int) -> None:
        self._shape = (num_latents, num_leaders)
        self._filled_C = {which: np.zeros(num_latents, np.int64) for which in LISTS}
        self._value_CK = {which: np.empty(self._shape) for which in LISTS}
        self._row_CK = {which: np.empty(self._shape, np.uint8) for which in LISTS}
        self._entry_CK = {which: np.empty(self._shape, _ENTRY) for which in LISTS}

    def add(self, segment: int, start: int, edges_L: Array, entry_Z: Array, influence_Z: Array) -> None:
        """Take in a run of latents from `start` on: counted tokens in order, with their influence in its unit."""
        run = slice(start, start + len(edges_L) - 1)
        entry_Z["segment"] = segment
        values = {
            "largest": influence_Z,
            "smallest": -influence_Z,
            "strongest": entry_Z["activation"].astype(np.float64),
        }
        for which, value_Z in values.items():
            state = (self._filled_C, self._value_CK, self._row_CK, self._entry_CK)
            _keep_first(edges_L, value_Z, entry_Z, *(part[which][run] for part in state))

    def entries(self, which: str) -> tuple[Array, Array]:
        """Return the border of each latent int64 [C+1], and the entries [E] in order."""
        filled_C = self._filled_C[which]
        is_kept = np.arange(self._shape[1]) < filled_C[:, None]
        rows = np.minimum(self._row_CK[which], self._shape[1] - 1)
        entry_CK = np.take_along_axis(self._entry_CK[which], rows.astype(np.int64), axis=1)
        return np.concatenate([[0], np.cumsum(filled_C)]), entry_CK[is_kept]


_ENTRY = np.dtype([("segment", "u4"), ("token", "u4"), ("activation", "f4"), ("projection", "f4")])


def entries_of(token_Z: Array, activation_Z: Array, projection_Z: Array) -> Array:
    """Put columns of tokens side by side, as `LeadersOfSite` takes them."""
    entry_Z = np.empty(len(token_Z), _ENTRY)
    entry_Z["token"], entry_Z["activation"], entry_Z["projection"] = token_Z, activation_Z, projection_Z
    return entry_Z


def leader_arrays(site: str, edges_C: Array, lists: dict[tuple[str, str], dict[str, Array]]) -> Placed:
    """Yield the arrays of a site's lists, given the columns of each by objective and list."""
    group = f"sites/{component(site)}/leaders"
    yield from place(group, (EDGES,), {"indptr": edges_C})
    for (objective, which), columns in lists.items():
        yield from place(f"{group}/{component(objective)}/{which}", LEADERS, columns)


@numba.njit(nogil=True, cache=True)
def _keep_first(
    edges: Array, values: Array, entries: Array, filled: Array, best: Array, rows: Array, kept: Array
) -> None:
    """Insert each latent's entries into its list: by falling value, NaN last, what came first before its equals.

    `rows` says where in `kept` the entry of each place lies, so that only small numbers move.
    """
    most = best.shape[1]
    for c in range(len(edges) - 1):
        for z in range(edges[c], edges[c + 1]):
            value, count = values[z], filled[c]
            if count == most and not (value > best[c, most - 1] or (np.isnan(best[c, most - 1]) and value == value)):
                continue
            row = count if count < most else rows[c, most - 1]
            place = min(count, most - 1)
            while place > 0 and (value > best[c, place - 1] or (np.isnan(best[c, place - 1]) and value == value)):
                best[c, place], rows[c, place] = best[c, place - 1], rows[c, place - 1]
                place -= 1
            best[c, place], rows[c, place], kept[c, row] = value, row, entries[z]
            filled[c] = min(count + 1, most)
