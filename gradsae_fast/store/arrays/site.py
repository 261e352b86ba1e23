"""One site of one committed segment, read by token or by latent.

N tokens, C latents, Z non-zeros, R pairs of a document and a latent. Latent ids come as int32, token positions and row
borders as int64, activations and projections as float32, every column of sums as float64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.records import SparseScores
from gradsae_fast.store.arrays.inverted import tokens_of_gaps
from gradsae_fast.store.arrays.stored import StoredArray
from gradsae_fast.store.format.layout import DOCUMENT_SUMS, LATENT_STATS, Array, ArraySpec, of_side, path_of
from gradsae_fast.store.format.polarity import POLARITIES

_EDGES_AND_IDS = ("indptr", "indices")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentSums:
    """Sums over the counted tokens of each document, as CSR over documents; a pair that never counts is absent.

    Columns, all float64 [R]: `count`, `sum_activation`, `max_activation`, and per objective
    `sum_influence/<objective>`, `sum_positive/…`, `sum_absolute/…`, `max_influence/…`. Of the negative side alone,
    `max_activation` is the most negative activation.
    """

    indptr: Array  # int64 [M+1]
    indices: Array  # int32 [R], ascending inside a document
    columns: Mapping[str, Array]
    num_latents: int  # C


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentStats:
    """Sums over the counted tokens of a segment for each latent; 0 for a latent that is never active.

    Columns, all float64 [C]: `count`, `count_positive`, `count_negative`, `sum_activation`, `max_activation`, and per
    objective `sum_influence/<objective>`, `sum_absolute/…`, `max_absolute/…`. One side alone has no counts by sign, and
    `max_activation` of the negative one is the most negative activation.
    """

    columns: Mapping[str, Array]
    num_latents: int  # C


class StoredSite:
    """The scores of one site in one segment; made by `StoredSegment.site`."""

    def __init__(
        self,
        *,
        open_array: Callable[[str], StoredArray],
        label: str,
        name: str,
        objectives: Sequence[str],
        shape: tuple[int, int],
        sides: bool,
    ) -> None:
        self.name = name
        self.objectives = list(objectives)
        self.num_tokens, self.num_latents = shape
        self._sides = sides
        self._open_array = open_array  # by its path below the site
        self._label = label
        self._arrays: dict[str, StoredArray] = {}

    def by_token(self, start: int = 0, stop: int | None = None) -> SparseScores:
        """Return the scores of tokens `start` to `stop` (default: the last), reading only their chunks.

        Raises:
            QueryError: a range outside the segment.
            StoreError: damaged data.
        """
        stop = self.num_tokens if stop is None else stop
        if not 0 <= start <= stop <= self.num_tokens:
            raise QueryError(f"{self._label}: tokens {start} to {stop}; expected a range inside 0 to {self.num_tokens}")
        edges = self._borders("by_token/indptr", self._array("by_token/indptr").read(start, stop + 1))
        first, last = int(edges[0]), int(edges[-1])
        for path in ("indices", "activation", *(path_of("projection/{objective}", name) for name in self.objectives)):
            self._array(f"by_token/{path}").expect(first, last)
        return SparseScores(
            indptr=edges - first,
            indices=self._latents("by_token/indices", self._array("by_token/indices").read(first, last)),
            activation=self._array("by_token/activation").read(first, last),
            projections=self._projections("by_token", first, last),
            num_latents=self.num_latents,
        )

    def by_latent(self, latent: int) -> tuple[Array, Array, dict[str, Array]]:
        """Return (tokens int64 ascending, activation float32, projections by objective); masked tokens too.

        Raises:
            QueryError: no such latent.
            StoreError: damaged data.
        """
        if not 0 <= latent < self.num_latents:
            raise QueryError(f"latent {latent} of site {self.name}; expected 0 to {self.num_latents - 1}")
        first, last = int(self._latent_edges[latent]), int(self._latent_edges[latent + 1])
        tokens = tokens_of_gaps(self._array("by_latent/token_gap").read(first, last))
        if len(tokens) and tokens[-1] >= self.num_tokens:
            raise self._damaged("by_latent/token_gap", f"speaks of token {tokens[-1]} of {self.num_tokens}")
        activation = self._array("by_latent/activation").read(first, last)
        return tokens, activation, self._projections("by_latent", first, last)

    def by_latents(self, start: int, stop: int) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Return what `by_latent` does of a run of latents, end to end, with the border of each int64 before it.

        Raises:
            StoreError: damaged data.
        """
        edges = self._borders("by_latent/indptr", self._latent_edges[start : stop + 1])
        first, last = int(edges[0]), int(edges[-1])
        total = np.concatenate([[0], tokens_of_gaps(self._array("by_latent/token_gap").read(first, last))])
        tokens = total[1:] - np.repeat(total[edges[:-1] - first], np.diff(edges))
        if len(tokens) and tokens.max() >= self.num_tokens:
            raise self._damaged("by_latent/token_gap", f"speaks of token {tokens.max()} of {self.num_tokens}")
        activation = self._array("by_latent/activation").read(first, last)
        return edges - first, tokens, activation, self._projections("by_latent", first, last)

    def latent_runs(self, num_entries: int) -> list[tuple[int, int]]:
        """Cut the latents into runs of neighbours that together have at most so many entries (or are one latent)."""
        runs, start, edges = list[tuple[int, int]](), 0, self._latent_edges
        while start < self.num_latents:
            stop = int(np.searchsorted(edges, edges[start] + num_entries, side="right")) - 1
            runs.append((start, max(start + 1, stop)))
            start = runs[-1][1]
        return runs

    @cached_property
    def is_signed(self) -> bool:
        """Whether an activation is negative; in a segment of an earlier release, one of a token that counts."""
        return self._sides or bool(self.latent_stats(["count_negative"]).columns["count_negative"].any())

    def has_sums(self, polarity: str | None) -> bool:
        """Whether the sums of a polarity can be read: everywhere but in signed segments of an earlier release."""
        return polarity is None or self._sides or self._is_positive

    def document_sums(
        self, columns: Sequence[str] | None = None, *, polarity: str | None = None, documents: Array | None = None
    ) -> DocumentSums:
        """Return the per-document sums, all columns or the named ones.

        Args:
            columns: names of columns; None: all.
            polarity: "positive" or "negative": only of tokens on which the latent is; None: of all on which it is
                active.
            documents: positions in the segment, ascending: only the chunks that hold their rows are read; None: all.

        Raises:
            QueryError: no such column or polarity, or no sums of it (see `has_sums`).
            StoreError: damaged data.
        """
        group, specs = self._side("documents", DOCUMENT_SUMS, polarity)
        paths = self._paths(specs, columns)
        whole = self._borders(f"{group}/indptr", self._array(f"{group}/indptr").read())
        chosen = np.arange(len(whole) - 1) if documents is None else documents
        starts, stops = _runs(chosen)
        rows = (whole[starts].tolist(), whole[stops].tolist())
        sums = DocumentSums(
            indptr=np.concatenate([[0], np.cumsum(np.diff(whole)[chosen])]),
            indices=self._latents(f"{group}/indices", self._array(f"{group}/indices").read_ranges(*rows, np.int32)),
            columns={
                name: self._array(f"{group}/{path}").read_ranges(*rows, np.float64) for name, path in paths.items()
            },
            num_latents=self.num_latents,
        )
        if not self._is_silent(polarity):
            return sums
        nothing = {name: values[:0] for name, values in sums.columns.items()}
        return replace(sums, indptr=np.zeros_like(sums.indptr), indices=sums.indices[:0], columns=nothing)

    def latent_stats(self, columns: Sequence[str] | None = None, *, polarity: str | None = None) -> LatentStats:
        """Return the per-latent statistics, all columns or the named ones; `polarity` as in `document_sums`.

        Raises:
            QueryError: no such column or polarity, or no sums of it (see `has_sums`).
            StoreError: damaged data.
        """
        group, specs = self._side("latents", LATENT_STATS, polarity)
        found = {
            name: self._array(f"{group}/{path}").read().astype(np.float64)
            for name, path in self._paths(specs, columns).items()
        }
        if self._is_silent(polarity):
            found = {name: np.zeros_like(values) for name, values in found.items()}
        return LatentStats(columns=found, num_latents=self.num_latents)

    def _side(
        self, group: str, specs: tuple[ArraySpec, ...], polarity: str | None
    ) -> tuple[str, tuple[ArraySpec, ...]]:
        """Where the sums of a polarity lie, and what they are: the only ones, where no side has its own."""
        if polarity not in (None, *POLARITIES):
            raise QueryError(f"got polarity = {polarity!r}; expected {', '.join(POLARITIES)} or None")
        if not self.has_sums(polarity):
            raise QueryError(
                f"{self._label} was written by an earlier release, which kept no sums of one polarity; sum the scores "
                "of its tokens (`by_token`), or extract to a new store"
            )
        of_one_side, of_specs = of_side(group, specs, polarity)
        return (of_one_side if self._sides else group), of_specs

    def _is_silent(self, polarity: str | None) -> bool:
        return polarity == "negative" and not self._sides

    @cached_property
    def _is_positive(self) -> bool:
        """Whether every activation that counts is positive."""
        counts = self.latent_stats(["count", "count_positive"]).columns
        return bool((counts["count"] == counts["count_positive"]).all())

    @cached_property
    def _latent_edges(self) -> Array:
        return self._array("by_latent/indptr").read()

    def _projections(self, group: str, first: int, last: int) -> dict[str, Array]:
        template = f"{group}/projection/{{objective}}"
        return {name: self._array(path_of(template, name)).read(first, last) for name in self.objectives}

    def _paths(self, specs: tuple[ArraySpec, ...], wanted: Sequence[str] | None) -> dict[str, str]:
        """Where the wanted columns lie below their group, by name."""
        paths: dict[str, str] = {}
        for spec in specs:
            if spec.name.endswith("{objective}"):
                paths |= {spec.name.replace("{objective}", name): path_of(spec.name, name) for name in self.objectives}
            elif spec.name not in _EDGES_AND_IDS:
                paths[spec.name] = spec.name
        unknown = [name for name in wanted or () if name not in paths]
        if unknown:
            raise QueryError(f"{self._label} has no column {unknown[0]!r}; it has {', '.join(paths)}")
        return paths if wanted is None else {name: paths[name] for name in wanted}

    def _borders(self, path: str, edges: Array) -> Array:
        """Borders of rows, which ascend; that they lie inside is seen when rows are read."""
        if (edges[1:] < edges[:-1]).any():
            raise self._damaged(path, "has borders that do not ascend")
        return edges

    def _latents(self, path: str, ids: Array) -> Array:
        """Latent ids as int32."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_latents:
            raise self._damaged(path, f"speaks of latent {ids.max()} of {self.num_latents}")
        return ids.astype(np.int32, copy=False)

    def _damaged(self, path: str, what: str) -> StoreError:
        return StoreError(
            f"{self._label}, {path} {what}; it is damaged or was not written by gradsae-fast: run `gradsae verify` on "
            "the store, or copy it again from where it came"
        )

    def _array(self, path: str) -> StoredArray:
        if path not in self._arrays:
            self._arrays[path] = self._open_array(path)
        return self._arrays[path]


def _runs(chosen: Array) -> tuple[Array, Array]:
    """Return where runs of neighbours begin among ascending numbers, and one past where they end."""
    begins = np.diff(chosen, prepend=-2) > 1
    ends = np.diff(chosen, append=np.iinfo(np.int64).max) > 1
    return chosen[begins], chosen[ends] + 1
