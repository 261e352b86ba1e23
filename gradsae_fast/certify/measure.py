"""The straight line of a certificate: reopen, draw, ablate, compare, keep.

What is ablated is what the stored score speaks about. A token is scored in one window, so its latent is removed in
that window; where later windows see the token again as context, it stays. A latent of a whole document is removed at
all its tokens that count, in each window at those that the window scores, and the effects of the windows are added.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradsae_fast.ablate import Removal, ScoredWindow, ablate, scored_windows
from gradsae_fast.certify.agreement import pearson, sign_agreement, slope, slope_interval, spearman
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.certify.sample import DrawnDocument, Sample, Sampling, draw_documents, draw_samples, stored_value
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.errors import ConfigError, ScoreError
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Array, TokenDocument, Window
from gradsae_fast.store import open_scores
from gradsae_fast.store.certificate import Agreement, Certificate, locked, write_certificate

# By how much an objective's value may differ from the stored one, relative to it (or to 1): what rounding may cause.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}

_Place = tuple[int, int, str, str]  # segment, slot, site, objective


def certify(
    path: str | Path,
    *,
    sampling: Sampling | None = None,
    device: str | None = None,
    tokens_per_batch: int = 8192,
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Certificate:
    """Ablate a sample of a store's scores exactly, and keep how well they agree inside the store.

    The store may be incomplete; its committed segments are certified. `device` is where to compute (default: as the
    store's run was told); `tokens_per_batch` bounds a forward pass of ablated copies. `objectives` and `documents` are
    those given to `extract`, if any. An earlier certificate is replaced. Equal seeds give equal bytes, for one
    configuration, device and set of library versions.

    Raises:
        IdentityError: model, SAEs, corpus or method are no longer those that made the store.
        ScoreError: this run does not give the stored values of the objectives.
        GradsaeError: what opening the store and loading the model raise.
    """
    if tokens_per_batch < 1:
        raise ConfigError(f"tokens_per_batch is {tokens_per_batch}; expected at least 1.")
    tell = on_message or (lambda _: None)
    sampling = sampling or Sampling()
    store = open_scores(path)
    with locked(store.path):
        drawn = draw_documents(store, sampling)
        prepared, differences = reopen(store, device=device, functions=objectives, documents=documents)
        for field, (was, now) in differences.items():
            tell(f"{field} was {was} when the store was made and is {now} now; last bits may differ")
        samples = list(draw_samples(store, drawn, sampling))
        tell(f"ablating {len(samples)} samples of {len(drawn)} documents")
        exact_N, deviation = _Measurement(prepared, drawn, samples, tokens_per_batch, tell).carry_out()
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


class _Measurement:
    """The loop over the drawn documents' windows; drops and values of a document add up over its windows."""

    def __init__(
        self,
        prepared: Prepared,
        drawn: Sequence[DrawnDocument],
        samples: Sequence[Sample],
        tokens_per_pass: int,
        tell: Callable[[str], None],
    ) -> None:
        self.prepared = prepared
        self.drawn = {(document.segment.index, document.slot): document for document in drawn}
        self.samples = samples
        self.tokens_per_pass = tokens_per_pass
        self.tell = tell
        self.drop_N = np.zeros(len(samples))
        self.values: dict[_Place, float] = defaultdict(float)
        self.samples_at: dict[_Place, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            document = sample.document
            self.samples_at[document.segment.index, document.slot, sample.site, sample.objective].append(index)

    def carry_out(self) -> tuple[Array, float]:
        """The exact effect of every sample, in its objective's unit, and the largest deviation of an objective."""
        prepared = self.prepared
        wanted = {segment for segment, _ in self.drawn}
        skip = frozenset(segment.index for segment in prepared.plan.segments) - wanted
        for segment, documents in read_segments(
            prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, skip
        ):
            self._measure_segment(segment.index, documents)
        deviation = max(self._deviation(place) for place in self.values)
        effects = [self._in_unit(sample, drop) for sample, drop in zip(self.samples, self.drop_N.tolist(), strict=True)]
        return np.array(effects), deviation

    def _measure_segment(self, segment: int, documents: Sequence[TokenDocument]) -> None:
        """Cut the windows and fill the batches as they were scored, so that the same bits come out."""
        prepared = self.prepared
        windows = [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]
        for batch in prepared.batches(windows):
            rows = [row for row, window in enumerate(batch.windows) if (segment, window.slot) in self.drawn]
            if not rows:
                continue
            for scored in scored_windows(prepared.lm, prepared.sited, prepared.method, batch):
                for row in rows:
                    self._measure_window(segment, scored[row])
        for (where, slot), document in self.drawn.items():
            if where == segment:
                self._check_values(document)
                self.tell(f"document {document.key!r} (segment {segment}, number {slot}) is done")

    def _measure_window(self, segment: int, scored: ScoredWindow) -> None:
        prepared, window = self.prepared, scored.window
        for objective in prepared.objectives:
            place = (segment, window.slot, scored.sited.site.path, objective.name)
            inside = {index: _inside(self.samples[index].position_P, window) for index in self.samples_at[place]}
            touched = [index for index, position_P in inside.items() if len(position_P)]
            effects = ablate(
                prepared.lm,
                scored,
                [Removal(latent=self.samples[index].latent, position_P=inside[index]) for index in touched],
                objective,
                tokens_per_pass=self.tokens_per_pass,
                chunk=prepared.config.run.head_chunk_tokens,
            )
            self.values[place] += effects.value
            self.drop_N[touched] += effects.drop_K

    def _check_values(self, document: DrawnDocument) -> None:
        """Refuse to certify other scores than the stored ones."""
        limit = _TOLERANCE[self.prepared.lm.dtype]
        for place in self.values:
            segment, slot, site, objective = place
            if (segment, slot) == (document.segment.index, document.slot) and not self._deviation(place) <= limit:
                raise ScoreError(
                    f"{objective} of document {document.key!r} at {site} is {self.values[place]:.6g} in this run, but "
                    f"{stored_value(document, site, objective):.6g} in the store; expected a relative difference of at "
                    f"most {limit:g}. Certify on the device and with the library versions that made the store."
                )

    def _deviation(self, place: _Place) -> float:
        segment, slot, site, objective = place
        stored = stored_value(self.drawn[segment, slot], site, objective)
        return abs(self.values[place] - stored) / max(1.0, abs(stored))

    def _in_unit(self, sample: Sample, drop: float) -> float:
        """The effect in the objective's unit: `continuation-prob` is run as log p, and p - p·exp(-drop) is meant."""
        if sample.objective != "continuation-prob":
            return drop
        return float(-np.exp(stored_value(sample.document, sample.site, sample.objective)) * np.expm1(-drop))


def _inside(position_P: Array, window: Window) -> Array:
    """Positions in the window of those positions in its document that the window scores."""
    shifted_P = position_P - window.first_position
    return shifted_P[(shifted_P >= 0) & (shifted_P < window.num_scored)] + window.num_context


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
