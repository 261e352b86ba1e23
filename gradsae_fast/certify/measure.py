"""The straight line of a certificate: reopen, draw, ablate, compare, keep.

A latent of a whole document is removed at all its tokens that count, one of a pair at its token; `exact.effects` says
in which windows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradsae_fast.certify.agreement import pearson, sign_agreement, slope, slope_interval, spearman
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.certify.sample import DrawnDocument, Sample, Sampling, draw_documents, draw_samples
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.counts import counted
from gradsae_fast.errors import ConfigError, StoreError
from gradsae_fast.exact.effects import DocumentRemoval, Place, check_values, document_effects
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.prepare import Prepared
from gradsae_fast.ranking.units import effect_in_unit
from gradsae_fast.records import Array
from gradsae_fast.store import open_scores
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import Place as StorePlace
from gradsae_fast.store.sidecars.certificate import Agreement, Certificate, write_certificate


def certify(
    path: str | StorePlace,
    *,
    sampling: Sampling | None = None,
    device: str | None = None,
    tokens_per_batch: int = 8192,
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Certificate:
    """Ablate a sample of a store's scores exactly, and keep how well they agree inside the store.

    The store may be incomplete; its committed segments are certified, of several generations those of the first, as its
    run is the one that is prepared again. `device` is where to compute (default: as the
    store's run was told); `tokens_per_batch` bounds a forward pass of ablated copies. `objectives` and `documents` are
    those given to `extract`, if any. An earlier certificate is replaced. Equal seeds give equal bytes, for one
    configuration, device and set of library versions.

    Raises:
        IdentityError: model, SAEs, corpus or method are no longer those that made the store.
        ScoreError: this run does not give the stored values of the objectives.
        StoreError: its segments were replaced by `gradsae drop` or `gradsae compact`.
        GradsaeError: what opening the store and loading the model raise.
    """
    if tokens_per_batch < 1:
        raise ConfigError(f"tokens_per_batch is {tokens_per_batch}; expected at least 1.")
    tell = on_message or (lambda _: None)
    sampling = sampling or Sampling()
    store = open_scores(path)
    if store.num_revisions or store.generations[0].is_closed:
        raise StoreError(
            f"documents of {store.path} were dropped or its segments compacted, so that they are no longer those "
            "of the corpus's plan and cannot be measured again; certify before `gradsae drop` and `gradsae compact`, "
            "which keep a certificate that does not speak about dropped documents"
        )
    with locked(store.path):
        drawn = draw_documents(store, sampling)
        prepared, differences = reopen(store, device=device, functions=objectives, documents=documents)
        for field, (was, now) in differences.items():
            tell(f"{field} was {was} when the store was made and is {now} now; last bits may differ")
        if prepared.method.path_steps:
            tell("the scores are integrated gradients: shares of a joint effect, no estimates of a single removal")
        samples = list(draw_samples(store, drawn, sampling))
        tell(f"ablating {counted(len(samples), 'sample')} of {counted(len(drawn), 'document')}")
        exact_N, deviation = _measure(prepared, drawn, samples, tokens_per_batch, tell)
        certificate = Certificate(
            agreements=tuple(_agreements(samples, exact_N, sampling.seed)),
            sampling=dataclasses.asdict(sampling),
            documents=tuple(document.key for document in drawn),
            segments={str(document.segment.index): document.segment.digest for document in drawn},
            differences=differences,
            value_deviation=deviation,
            samples=_columns(samples, exact_N),
        )
        write_certificate(store.path, certificate)
    return certificate


def _measure(
    prepared: Prepared,
    drawn: Sequence[DrawnDocument],
    samples: Sequence[Sample],
    tokens_per_pass: int,
    tell: Callable[[str], None],
) -> tuple[Array, float]:
    """The exact effect of every sample, in its objective's unit, and the largest deviation of an objective."""
    exact_N, deviation = np.zeros(len(samples)), 0.0
    stored = {document.segment.index: document.segment for document in drawn}
    skip = frozenset(segment.index for segment in prepared.plan.segments) - stored.keys()
    for segment, documents in read_segments(
        prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, skip
    ):
        here = [document for document in drawn if document.segment.index == segment.index]
        at_place = _samples_at(prepared, here, samples)
        removals = {place: [_removal(samples[index]) for index in at] for place, at in at_place.items()}
        effects = document_effects(prepared, documents, removals, tokens_per_pass=tokens_per_pass)
        deviation = max(deviation, check_values(prepared, stored[segment.index], effects))
        for place, at in at_place.items():
            value = stored[segment.index].values_of(place.objective, place.site)[place.slot]
            exact_N[at] = effect_in_unit(place.objective, value, effects[place].drop_K)
        for document in here:
            tell(f"document {document.key!r} (segment {segment.index}, number {document.slot}) is done")
    return exact_N, deviation


def _samples_at(
    prepared: Prepared, drawn: Sequence[DrawnDocument], samples: Sequence[Sample]
) -> dict[Place, list[int]]:
    """The samples of each drawn document, site and objective; a place without any is there too: its value counts."""
    sites = [one.site.path for one in prepared.sited]
    names = [objective.name for objective in prepared.objectives]
    at_place: dict[Place, list[int]] = {
        Place(document.slot, site, name): [] for document in drawn for site in sites for name in names
    }
    for index, sample in enumerate(samples):
        if sample.document in drawn:
            at_place[Place(sample.document.slot, sample.site, sample.objective)].append(index)
    return at_place


def _removal(sample: Sample) -> DocumentRemoval:
    return DocumentRemoval(latent=sample.latent, position_P=sample.position_P)


def _agreements(samples: Sequence[Sample], exact_N: Array, seed: int) -> list[Agreement]:
    """One row for each site, objective, kind of score and class of latents, also where a class has no sample."""
    predicted_N = np.array([sample.predicted for sample in samples])
    groups = dict.fromkeys((sample.site, sample.objective, sample.scores) for sample in samples)
    rows = []
    for group in groups:
        in_group = [(sample.site, sample.objective, sample.scores) == group for sample in samples]
        classes = {
            "all": [not sample.extra for sample in samples],
            "dense": [sample.dense for sample in samples],
            "sparse": [not sample.dense for sample in samples],
        }
        for name, member in classes.items():
            chosen_N = np.array(in_group) & np.array(member)
            rows.append(_agreement(*group, name, predicted_N[chosen_N], exact_N[chosen_N], seed))
    return rows


def _agreement(
    site: str, objective: str, scores: str, latents: str, predicted_N: Array, exact_N: Array, seed: int
) -> Agreement:
    low, high = slope_interval(predicted_N, exact_N, seed) or (None, None)
    return Agreement(
        site=site,
        objective=objective,
        scores=scores,
        latents=latents,
        samples=len(predicted_N),
        pearson=pearson(predicted_N, exact_N),
        spearman=spearman(predicted_N, exact_N),
        sign_agreement=sign_agreement(predicted_N, exact_N),
        slope=slope(predicted_N, exact_N),
        slope_low=low,
        slope_high=high,
    )


def _columns(samples: Sequence[Sample], exact_N: Array) -> dict[str, tuple[Any, ...]]:
    """The samples, column by column; `position` is that of a pair's token in its document."""
    return {
        "site": tuple(sample.site for sample in samples),
        "objective": tuple(sample.objective for sample in samples),
        "scores": tuple(sample.scores for sample in samples),
        "document": tuple(sample.document.key for sample in samples),
        "position": tuple(int(s.position_P[0]) if s.scores == "pairs" else None for s in samples),
        "tokens": tuple(len(sample.position_P) for sample in samples),
        "latent": tuple(sample.latent for sample in samples),
        "dense": tuple(sample.dense for sample in samples),
        "extra": tuple(sample.extra for sample in samples),
        "predicted": tuple(sample.predicted for sample in samples),
        "exact": tuple(exact_N.tolist()),
    }
