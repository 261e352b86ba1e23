"""Exact effects of the dense latents of a store, measured document by document and kept beside the scores.

A latent that fires on more than a share of the tokens that count is *dense*. Dense latents are few, and they are those
whose first-order scores are least to be trusted; so each is removed from each document in earnest. The pass needs every
segment, as only the whole corpus says which latents are dense. It writes segment by segment and goes on where it
stopped.

Letters: C latents of an SAE, K dense ones, M documents and N tokens of a segment.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gradsae_fast.ablate import Effects
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.counts import counted
from gradsae_fast.errors import ConfigError, StoreError
from gradsae_fast.exact.effects import DocumentRemoval, Place, check_values, document_effects
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Array, counted_tokens
from gradsae_fast.store import ScoreStore, StoredSegment, open_scores
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.generations import own_generation
from gradsae_fast.store.sidecars.exact import ExactWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactReport:
    """What a pass did."""

    share: float
    num_dense: Mapping[str, int]  # dense latents of each site
    num_segments: int  # measured by this pass
    num_skipped: int  # were there already
    num_removals: int  # pairs of a document and a dense latent that were measured, over all sites and objectives
    seconds: float
    value_deviation: float  # largest |objective now - objective stored| / max(1, |stored|)


def exact_dense(
    prepared: Prepared,
    *,
    share: float,
    tokens_per_pass: int = 8192,
    tell: Callable[[str], None] | None = None,
) -> ExactReport:
    """Measure every dense latent's exact effect on every document of a complete store, and keep it in the store.

    Of a store of several generations those of the run's own documents are measured; which latents are dense all say.
    `prepared` is the run that made the store, its sinks recognised as then (`with_sink_limits`). A latent is dense that
    fires on more than `share` of the tokens that count. Segments that were measured for the same share are skipped;
    those of another share are measured anew. A pass of ablated copies holds at most `tokens_per_pass` tokens.

    Raises:
        ConfigError: a share that is none.
        StoreError: segments are missing, or were replaced since; or the disk is full or read-only.
        BusyError: another process writes to the store.
        ScoreError: this run does not give the stored values of the objectives.
    """
    if not 0 < share < 1:
        raise ConfigError(f"exact_dense is {share}; expected a share of the tokens between 0 and 1, like 0.2.")
    path = place_of(prepared.config.store.path)
    with locked(path):
        store = open_scores(path)
        if not store.is_complete:
            raise StoreError(
                f"{path} has {len(store.committed)} of {store.num_segments} segments; expected all, as only the whole "
                "corpus says which latents are dense: run `gradsae extract` to its end first"
            )
        if store.num_revisions or any(generation.is_closed for generation in store.generations):
            return _measured_before(store, share)
        dense = {site: np.flatnonzero(dense_latents(store, site, share)) for site in store.sites}
        writer = ExactWriter(path, store.segments, store.profile, share, dense)
        return _Pass(prepared, store, writer, tokens_per_pass, tell or (lambda _: None)).run()


def _measured_before(store: ScoreStore, share: float) -> ExactReport:
    """What a store still has whose segments are no longer those of a plan.

    Raises:
        StoreError: nothing was measured before, or not all, or for another share.
    """
    found = store.exact_dense()
    if found is None or found.missing or found.share != share:
        raise StoreError(
            f"documents of {store.path} were dropped or its segments compacted, so that they are no longer those "
            f"of the corpus's plan and exact effects of more than {share:g} of the tokens cannot be measured any more; "
            "expected --exact-dense before `gradsae drop` and `gradsae compact`, which keep what was measured"
        )
    num_dense = {site: len(latents_K) for site, latents_K in found.latents.items()}
    return ExactReport(
        share=share,
        num_dense=num_dense,
        num_segments=0,
        num_skipped=len(store.segments),
        num_removals=0,
        seconds=0.0,
        value_deviation=0.0,
    )


def dense_latents(store: ScoreStore, site: str, share: float) -> Array:
    """Which latents fire on more than a share of the committed tokens that count, bool [C]."""
    counted = sum(int(segment.counted_tokens().sum()) for segment in store.segments)
    counts = [segment.site(site).latent_stats(["count"]).columns["count"] for segment in store.segments]
    dense_C: Array = np.sum(counts, axis=0) > share * counted
    return dense_C


class _Pass:
    """The loop over the segments that are still to measure, and the counts that it reports."""

    def __init__(
        self,
        prepared: Prepared,
        store: ScoreStore,
        writer: ExactWriter,
        tokens_per_pass: int,
        tell: Callable[[str], None],
    ) -> None:
        self.prepared = prepared
        self.store = store
        self.writer = writer
        self.tokens_per_pass = tokens_per_pass
        self.tell = tell
        self.generation = own_generation(store.path, store.generations, prepared.identity())
        self.num_removals = 0
        self.deviation = 0.0

    def run(self) -> ExactReport:
        prepared, writer, started = self.prepared, self.writer, time.perf_counter()
        first, own = self.generation.first_segment, self.generation.segments
        skipped = frozenset(index - first for index in writer.committed if index in own)
        for site, latents_K in writer.dense.items():
            found = counted(len(latents_K), "latent")
            self.tell(f"exact: on more than {writer.share:.3g} of the tokens fire {found} at {site}")
        stored = {segment.index: segment for segment in self.store.segments}
        for segment, documents in read_segments(
            prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, skipped
        ):
            of_store = stored[first + segment.index]
            removals = self._removals(of_store)
            effects = document_effects(prepared, documents, removals, tokens_per_pass=self.tokens_per_pass)
            self.deviation = max(self.deviation, check_values(prepared, of_store, effects))
            writer.write(of_store, self._drops(of_store, removals, effects))
            self.num_removals += sum(len(listed) for listed in removals.values())
            self.tell(f"exact: {len(writer.committed)} of {counted(self.store.num_segments, 'segment')} measured")
        return ExactReport(
            share=writer.share,
            num_dense={site: len(latents_K) for site, latents_K in writer.dense.items()},
            num_segments=len(own) - len(skipped),
            num_skipped=len(skipped),
            num_removals=self.num_removals,
            seconds=time.perf_counter() - started,
            value_deviation=self.deviation,
        )

    def _removals(self, segment: StoredSegment) -> dict[Place, list[DocumentRemoval]]:
        """Every dense latent that fires on a counted token of a document, there; not where the objective is NaN."""
        removals: dict[Place, list[DocumentRemoval]] = {}
        for site in self.store.sites:
            of_slot = _dense_positions(self.store, segment, site, self.writer.dense[site])
            for objective in self.store.objectives:
                finite_M = np.isfinite(segment.values_of(objective, site))
                removals |= {Place(slot, site, objective): of for slot, of in of_slot.items() if finite_M[slot]}
        return removals

    def _drops(
        self,
        segment: StoredSegment,
        removals: Mapping[Place, list[DocumentRemoval]],
        effects: Mapping[Place, Effects],
    ) -> dict[tuple[str, str], Array]:
        """The effects as matrices [M, K], one for each site and objective; 0 where a latent does not fire."""
        drops = {}
        for site, latents_K in self.writer.dense.items():
            for objective in self.store.objectives:
                drop_MK = np.zeros((segment.num_documents, len(latents_K)))
                drop_MK[~np.isfinite(segment.values_of(objective, site))] = np.nan
                drops[site, objective] = drop_MK
        for place, listed in removals.items():
            column = np.searchsorted(self.writer.dense[place.site], [removal.latent for removal in listed])
            drops[place.site, place.objective][place.slot, column] = effects[place].drop_K
        return drops


def _dense_positions(
    store: ScoreStore, segment: StoredSegment, site: str, latents_K: Array
) -> dict[int, list[DocumentRemoval]]:
    """For each document of a segment, the dense latents that fire on its counted tokens, and where."""
    document_N, position_N = segment.token_column("document"), segment.token_column("position").astype(np.int64)
    counted_N = counted_tokens(segment.token_column("mask"), store.aggregates_include_special)
    of_slot: dict[int, list[DocumentRemoval]] = defaultdict(list)
    for latent in latents_K.tolist():
        token_Z = segment.site(site).by_latent(latent)[0]
        token_Z = token_Z[counted_N[token_Z]]
        slots, first = np.unique(document_N[token_Z], return_index=True)
        # Before the first document lies an empty part; a latent that is silent here has this part alone.
        for slot, position_P in zip(slots.tolist(), np.split(position_N[token_Z], first)[1:], strict=True):
            of_slot[slot].append(DocumentRemoval(latent=latent, position_P=position_P))
    return of_slot
