"""The stretches of text in which a latent is strongest, and how its activations are spread, for many latents at once.

Every document is cut into stretches of T tokens. Of each latent the k stretches with the largest value at one of their
counted tokens are kept, so no two overlap. Letters: C latents, S stretches of a segment, H kept stretches (of all
latents), Z non-zeros of a run, B bins.

The store is read twice for all latents (kept stretches, then histograms), and once for each batch of latents whose
stretches are read out. Memory is a run (see `nonzeros`) and k entries for each latent, or one batch's stretches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.export.nonzeros import Run, SegmentTokens, read_runs, read_tokens, value_dtype
from gradsae_fast.ranking.question import Question
from gradsae_fast.ranking.selection import Selection
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

_WAITING = 1 << 20
_HIT = np.dtype([("latent", "i4"), ("part", "i4"), ("stretch", "i4"), ("token", "i4"), ("value", "f8")])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extremes:
    """The kept stretches, by latent and falling value, and the range of each latent's activations."""

    hits: Array  # _HIT [H]
    lowest_C: Array  # float32, 0 or the most negative activation
    highest_C: Array  # float32, 0 or the largest activation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stretch:
    """A piece of a document with one latent's values, one for each token; 0 where it is silent or does not count."""

    document: str  # key
    position: int  # of the first token in its document
    tokens: list[str]  # joined, they are the text of the piece, with names in place of tokens without characters
    activation: Array  # float32
    influence: Array  # float32, or float64 where influences are scaled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """How a segment's documents are cut: each stretch is a run of neighbouring tokens."""

    stretch_N: Array  # int64, stretch of each token
    start_S: Array  # int64, its first token
    stop_S: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """What is asked about: the chosen documents of a store, cut into stretches of `width` tokens."""

    store: ScoreStore
    selection: Selection
    question: Question
    width: int

    def segments(self) -> Iterator[tuple[SegmentTokens, Cut]]:
        """Yield every chosen segment's tokens and stretches."""
        for tokens in read_tokens(self.store, self.selection, self.question):
            yield tokens, cut(tokens, self.width)


def cut(tokens: SegmentTokens, width: int) -> Cut:
    """Cut each document into stretches of `width` tokens; the last one of a document may be shorter."""
    begins_N = tokens.position_N % width == 0
    begins_N[1:] |= np.diff(tokens.document_N) != 0
    begins_N[:1] = True
    start_S = np.flatnonzero(begins_N)
    return Cut(
        stretch_N=np.cumsum(begins_N) - 1,
        start_S=start_S,
        stop_S=np.append(start_S[1:], len(begins_N)),
    )


def find_extremes(corpus: Corpus, k: int, latents: Array | None) -> Extremes:
    """Find the k strongest stretches of each latent, by the question's measure, and the range of its activations."""
    question = corpus.question
    best, floor_C = _Best(k), np.full(question.num_latents, -np.inf)
    lowest_C, highest_C = (np.zeros(question.num_latents, np.float32) for _ in range(2))
    for tokens, cuts in corpus.segments():
        for run in read_runs(tokens, question, latents):
            finite_Z = np.isfinite(run.activation_Z)
            np.minimum.at(lowest_C, run.latent_Z[finite_Z], run.activation_Z[finite_Z])
            np.maximum.at(highest_C, run.latent_Z[finite_Z], run.activation_Z[finite_Z])
            best.add(_candidates(run, cuts, question.by, floor_C))
            if best.num_waiting > _WAITING:
                best.settle()
                best.raise_floor(floor_C)
    return Extremes(hits=best.settle(), lowest_C=lowest_C, highest_C=highest_C)


class _Best:
    """The k strongest stretches of each latent so far, and candidates that wait to be sorted among them."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._parts = [np.zeros(0, _HIT)]
        self.num_waiting = 0

    def add(self, candidates: Array) -> None:
        """Let candidates wait."""
        self._parts.append(candidates)
        self.num_waiting += len(candidates)

    def settle(self) -> Array:
        """Sort the waiting candidates in; return the strongest."""
        self._parts = [_first_k(np.concatenate(self._parts), self._k)]
        self.num_waiting = 0
        return self._parts[0]

    def raise_floor(self, floor_C: Array) -> None:
        """Set the value that a candidate must exceed: the k-th strongest, of latents that have k."""
        hits = self._parts[0]
        last = np.arange(self._k - 1, len(hits))
        full = last[hits["latent"][last] == hits["latent"][last - (self._k - 1)]]
        floor_C[hits["latent"][full]] = hits["value"][full]


def _candidates(run: Run, cuts: Cut, by: str, floor_C: Array) -> Array:
    """The non-zeros that may belong to the strongest: above what is the k-th strongest so far."""
    values = {"activation": run.activation_Z, "influence": run.influence_Z, "absolute": np.abs(run.influence_Z)}
    value_Z = values[by]
    strong_Z = value_Z > floor_C[run.latent_Z]
    token_Z = run.token_Z[strong_Z]
    found = np.zeros(len(token_Z), _HIT)
    found["latent"], found["part"], found["token"] = run.latent_Z[strong_Z], run.tokens.part, token_Z
    found["stretch"], found["value"] = cuts.stretch_N[token_Z], value_Z[strong_Z]
    return found


def _first_k(hits: Array, k: int) -> Array:
    """Keep the strongest token of each stretch, then the k strongest stretches of each latent; ties in corpus order."""
    hits = hits[np.lexsort((hits["token"], -hits["value"], hits["stretch"], hits["part"], hits["latent"]))]
    hits = hits[_changes(hits["latent"], hits["part"], hits["stretch"])]
    hits = hits[np.lexsort((hits["token"], hits["part"], -hits["value"], hits["latent"]))]
    first = np.flatnonzero(_changes(hits["latent"]))
    rank = np.arange(len(hits)) - np.repeat(first, np.diff(np.append(first, len(hits))))
    return hits[rank < k]


def _changes(*columns: Array) -> Array:
    """Whether each row differs from the one before it; the first one does."""
    differs = np.zeros(len(columns[0]), bool)
    differs[:1] = True
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return differs


def histograms(corpus: Corpus, extremes: Extremes, num_bins: int, latents: Array | None) -> Array:
    """Count each latent's finite activations in bins of equal width between its extremes: int64 [C, B].

    A bin holds its lower edge, and the last one both; edges are those of `bin_edges`.
    """
    edge_CB = bin_edges(extremes, num_bins)
    width_C = np.maximum(edge_CB[:, -1] - edge_CB[:, 0], np.finfo(np.float64).tiny)
    counts = np.zeros(len(edge_CB) * num_bins, np.int64)
    for tokens, _ in corpus.segments():
        for run in read_runs(tokens, corpus.question, latents):
            finite_Z = np.isfinite(run.activation_Z)
            latent_Z, value_Z = run.latent_Z[finite_Z].astype(np.int64), run.activation_Z[finite_Z].astype(np.float64)
            place_Z = (value_Z - edge_CB[latent_Z, 0]) / width_C[latent_Z] * num_bins
            bin_Z = np.clip(place_Z, 0, num_bins - 1).astype(np.int64)
            bin_Z -= value_Z < edge_CB[latent_Z, bin_Z]  # what a rounded quotient put on the wrong side of an edge
            bin_Z += (value_Z >= edge_CB[latent_Z, bin_Z + 1]) & (bin_Z < num_bins - 1)
            counts += np.bincount(latent_Z * num_bins + bin_Z, minlength=len(counts))
    return counts.reshape(-1, num_bins)


def bin_edges(extremes: Extremes, num_bins: int) -> Array:
    """Return the borders of each latent's bins, float64 [C, B + 1], as `numpy.histogram` has them for one latent."""
    low_C, high_C = extremes.lowest_C.astype(np.float64), extremes.highest_C.astype(np.float64)
    # numpy.linspace of arrays rounds otherwise for all of them where one latent is silent.
    edge_CB = np.arange(num_bins + 1) * ((high_C - low_C) / num_bins)[:, None] + low_C[:, None]
    edge_CB[:, -1] = high_C
    return edge_CB


def read_stretches(corpus: Corpus, hits: Array, vocabulary: Sequence[str] | None) -> list[Stretch]:
    """Read the text and the latent's values of every hit, in the order of the hits."""
    found: dict[int, Stretch] = {}
    for tokens, cuts in corpus.segments():
        at_H = np.flatnonzero(hits["part"] == tokens.part)
        if len(at_H):
            stretches = _of_segment(corpus, tokens, cuts, hits[at_H], vocabulary)
            found |= dict(zip(at_H.tolist(), stretches, strict=True))
    return [found[number] for number in range(len(hits))]


def _of_segment(
    corpus: Corpus, tokens: SegmentTokens, cuts: Cut, hits: Array, vocabulary: Sequence[str] | None
) -> Iterator[Stretch]:
    values = _values(corpus, tokens, cuts, hits)
    start_H, stop_H = cuts.start_S[hits["stretch"]], cuts.stop_S[hits["stretch"]]
    pieces = Pieces(tokens, vocabulary)
    keys = tokens.segment.document_keys()
    for row, (start, stop) in enumerate(zip(start_H.tolist(), stop_H.tolist(), strict=True)):
        yield Stretch(
            document=keys[int(tokens.document_N[start])],
            position=int(tokens.position_N[start]),
            tokens=pieces.between(start, stop),
            activation=values["activation"][row, : stop - start],
            influence=values["influence"][row, : stop - start],
        )


def _values(corpus: Corpus, tokens: SegmentTokens, cuts: Cut, hits: Array) -> dict[str, Array]:
    """Gather the latents' values in their stretches, [H, width], from the runs of a segment."""
    question, num_stretches = corpus.question, len(cuts.start_S)
    key_H = hits["latent"].astype(np.int64) * num_stretches + hits["stretch"]
    order_H = np.argsort(key_H)
    sorted_H = key_H[order_H]
    activation = np.zeros((len(hits), corpus.width), np.float32)
    influence = np.zeros((len(hits), corpus.width), value_dtype(question))
    for run in read_runs(tokens, question, np.unique(hits["latent"])):
        token_Z = run.token_Z
        stretch_Z = cuts.stretch_N[token_Z]
        key_Z = run.latent_Z.astype(np.int64) * num_stretches + stretch_Z
        place_Z = np.minimum(np.searchsorted(sorted_H, key_Z), len(sorted_H) - 1)
        wanted = np.flatnonzero(sorted_H[place_Z] == key_Z)
        row, column = order_H[place_Z[wanted]], token_Z[wanted] - cuts.start_S[stretch_Z[wanted]]
        activation[row, column] = run.activation_Z[wanted]
        influence[row, column] = run.influence_Z[wanted]
    return {"activation": activation, "influence": influence}


class Pieces:
    """Cuts the texts of a segment into the characters of each token."""

    def __init__(self, tokens: SegmentTokens, vocabulary: Sequence[str] | None) -> None:
        segment = tokens.segment
        self._tokens = tokens
        self._vocabulary = vocabulary or ()
        self._texts = segment.documents().text
        self._start_N = segment.token_column("char_start").astype(np.int64)
        self._end_N = segment.token_column("char_end").astype(np.int64)

    def between(self, start: int, stop: int) -> list[str]:
        """Return the text of each token from `start` to `stop`, of one document.

        A token begins where the one before it ends, so that blanks between tokens and characters shared by several are
        there once. A token that the tokenizer added has no characters and is shown by its name.
        """
        text = self._texts[int(self._tokens.document_N[start])]
        start_T, end_T = self._start_N[start:stop], self._end_N[start:stop]
        written_T = end_T > start_T
        first = int(start_T[written_T].min(initial=len(text)))
        edge_T = np.maximum.accumulate(np.concatenate([[first], np.where(written_T, end_T, first)])).tolist()
        token_ids = self._tokens.token_id_N[start:stop].tolist()
        return [
            text[edge_T[t] : edge_T[t + 1]] if written else self._name(token_ids[t])
            for t, written in enumerate(written_T.tolist())
        ]

    def _name(self, token_id: int) -> str:
        return self._vocabulary[token_id] if token_id < len(self._vocabulary) else f"<{token_id}>"
