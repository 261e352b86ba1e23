"""What a certificate looks at: stored influences of token-latent pairs and of whole documents, drawn from strata.

In each drawn document the candidates are sorted by influence, cut into as many strata of equal size as samples are
wanted, and one is drawn from each; the lowest and the highest stratum give their extreme. So a sample has the most
negative and the most positive influence of every document, those near zero, and both signs in their natural shares.
Dense latents are few, and most of their samples would be these extremes; so more of them are drawn until they are a
quarter as many as the sample. These extra samples count among the dense ones only.

Letters: N tokens of a document, Z its non-zeros, L its latents, P positions of one latent; C latents of the SAE,
M documents of a segment.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradsae_fast.errors import ConfigError, StoreError
from gradsae_fast.exact.dense import dense_latents
from gradsae_fast.method import score_scale
from gradsae_fast.records import Array, counted_tokens
from gradsae_fast.store import ScoreStore, StoredSegment

_DENSE_PART = 4  # samples for each dense one that is wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How much is drawn; `pairs` and `latents_per_document` are for each site and objective."""

    pairs: int = 200
    documents: int = 6
    latents_per_document: int = 20
    min_tokens: int = 1  # of a document, on which a latent fires that is drawn for the document as a whole
    dense_share: float = 0.2  # a latent is dense if it fires on more than this share of the tokens that count
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs", "documents", "latents_per_document", "min_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not 0 <= self.dense_share <= 1:
            raise ConfigError(f"dense_share is {self.dense_share}; expected a share between 0 and 1.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnDocument:
    """One document that samples are drawn from."""

    segment: StoredSegment
    slot: int  # position in its segment
    key: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One stored influence: of a latent at one position ("pairs"), or summed over a document ("documents")."""

    document: DrawnDocument
    site: str
    objective: str
    scores: str
    latent: int
    position_P: Array  # int64, tokens of the document that count and on which the latent is active; one for a pair
    predicted: float  # the stored influence, in the objective's unit
    dense: bool
    extra: bool = False  # drawn because it is dense


def draw_documents(store: ScoreStore, sampling: Sampling) -> list[DrawnDocument]:
    """Documents of generation 0 drawn at random from those with scores and finite objectives, in corpus order.

    Raises:
        StoreError: there is none.
    """
    candidates = [
        (segment, int(slot))
        for segment in store.segments
        if segment.index in store.generations[0].segments
        for slot in np.flatnonzero(_can_be_certified(segment))
    ]
    if not candidates:
        raise StoreError(
            f"{store.path} has no committed document with scores to certify; let `gradsae extract` commit some first"
        )
    generator = np.random.default_rng(sampling.seed)
    size = min(sampling.documents, len(candidates))
    drawn = [candidates[index] for index in np.sort(generator.choice(len(candidates), size, replace=False))]
    keys = {segment.index: segment.document_keys() for segment, _ in drawn}
    return [DrawnDocument(segment=segment, slot=slot, key=keys[segment.index][slot]) for segment, slot in drawn]


def draw_samples(store: ScoreStore, documents: Sequence[DrawnDocument], sampling: Sampling) -> Iterator[Sample]:
    """Samples of every site and objective, document by document; documents share `pairs` evenly."""
    shares = np.diff(np.linspace(0, sampling.pairs, len(documents) + 1).astype(int)).tolist()
    for site_index, site in enumerate(store.sites):
        dense_C = dense_latents(store, site, sampling.dense_share)
        for objective_index, objective in enumerate(store.objectives):
            for index, (document, num_pairs) in enumerate(zip(documents, shares, strict=True)):
                generator = np.random.default_rng([sampling.seed, site_index, objective_index, index])
                pairs, whole = _candidates(store, document, site, objective, dense_C)
                yield from _draw(pairs, num_pairs, generator)
                often = [sample for sample in whole if len(sample.position_P) >= sampling.min_tokens]
                yield from _draw(often, sampling.latents_per_document, generator)


def _can_be_certified(segment: StoredSegment) -> Array:
    """Documents that have a token that counts, and whose objectives are all finite, bool [M]."""
    finite_M = np.isfinite(np.stack(list(segment.objective_values().values()))).all(0)
    certifiable_M: Array = finite_M & (segment.counted_tokens() > 0)
    return certifiable_M


def _candidates(
    store: ScoreStore, document: DrawnDocument, site: str, objective: str, dense_C: Array
) -> tuple[list[Sample], list[Sample]]:
    """All pairs of a token and a latent of a document, and all its latents as a whole; tokens that count only."""
    segment, slot = document.segment, document.slot
    start, stop = np.searchsorted(segment.token_column("document"), [slot, slot + 1]).tolist()
    scores = segment.site(site).by_token(start, stop)
    counted_N = counted_tokens(segment.token_column("mask")[start:stop], store.aggregates_include_special)
    counted_Z = np.repeat(counted_N, np.diff(scores.indptr))
    position_Z = np.repeat(segment.token_column("position")[start:stop].astype(np.int64), np.diff(scores.indptr))
    position_Z, latent_Z = position_Z[counted_Z], scores.indices[counted_Z].astype(np.int64)
    scale = float(score_scale(objective, np.array([segment.values_of(objective, site)[slot]]))[0])
    influence_Z = (scores.activation * scores.projections[objective])[counted_Z].astype(np.float64) * scale

    def sample(kind: str, latent: int, position_P: Array, predicted: float) -> Sample:
        return Sample(
            document=document,
            site=site,
            objective=objective,
            scores=kind,
            latent=latent,
            position_P=position_P,
            predicted=predicted,
            dense=bool(dense_C[latent]),
        )

    pairs = [
        sample("pairs", int(latent_Z[z]), position_Z[z : z + 1], float(influence_Z[z])) for z in range(len(latent_Z))
    ]
    latent_L, sum_L = _document_sums(segment, slot, site, objective)
    whole = [
        sample("documents", latent, position_Z[latent_Z == latent], influence * scale)
        for latent, influence in zip(latent_L.tolist(), sum_L.tolist(), strict=True)
    ]
    return pairs, whole


def _document_sums(segment: StoredSegment, slot: int, site: str, objective: str) -> tuple[Array, Array]:
    """Latents of a document, ascending, and the stored sums of their influence, before any scale."""
    column = f"sum_influence/{objective}"
    sums = segment.site(site).document_sums([column])
    row = slice(int(sums.indptr[slot]), int(sums.indptr[slot + 1]))
    return sums.indices[row], sums.columns[column][row]


def _draw(candidates: list[Sample], count: int, generator: np.random.Generator) -> Iterator[Sample]:
    """One of each stratum, then dense ones until they are a quarter of `count`."""
    chosen = _one_of_each_stratum(candidates, count, generator)
    yield from chosen
    taken = set(map(id, chosen))
    rest = [sample for sample in candidates if sample.dense and id(sample) not in taken]
    wanted = -(-count // _DENSE_PART) - sum(sample.dense for sample in chosen)
    for sample in _one_of_each_stratum(rest, max(0, wanted), generator):
        yield dataclasses.replace(sample, extra=True)


def _one_of_each_stratum(candidates: list[Sample], count: int, generator: np.random.Generator) -> list[Sample]:
    ordered = sorted(candidates, key=lambda sample: sample.predicted)
    if len(ordered) <= count:
        return ordered
    edges = np.linspace(0, len(ordered), count + 1).astype(int)
    drawn = generator.integers(edges[:-1], edges[1:])
    if count > 1:
        drawn[0], drawn[-1] = 0, len(ordered) - 1
    return [ordered[index] for index in drawn]
