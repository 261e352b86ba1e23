"""One case: SAEs fitted, scores checked against the dense reference, then engine and bare model in turns.

Bare: forward, head in chunks, backward to the lowest site, hidden states and gradients of that site; no SAE. Engine:
the same pass with the scores of all sites, copied to the host, and the tallies that every run keeps. Both work on the
same batches of token ids; neither tokenises nor writes a store.

Letters: T positions of a window, C latents.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.end_to_end.arithmetic import calculate
from benchmarks.gpu.end_to_end.case import Case, Outcome, State
from benchmarks.gpu.end_to_end.documents import Corpus, random_batches, random_document
from benchmarks.gpu.end_to_end.lm_shape import LmShape
from benchmarks.gpu.end_to_end.room import shares_weights, weight_bytes, why_no_room
from benchmarks.gpu.stopwatch import Stopwatch, quantile
from benchmarks.gpu.variant import WrongAnswer
from benchmarks.random_saes import random_saes
from gradsae_fast.config import ScoreConfig
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.device_clock import clock_of
from gradsae_fast.method import Method, resolve_method
from gradsae_fast.model.capture import capture
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.quality import Tally
from gradsae_fast.records import Batch, SparseScores
from gradsae_fast.reference import dense_influence
from gradsae_fast.score import SitedSae, score_batch
from gradsae_fast.stages import DEVICE, record

OBJECTIVES = (Objective(name="next-token"),)
CHECKED_TOKENS = 64
ALLOWED_ERROR = {torch.bfloat16: 0.05, torch.float32: 1e-3}  # relative; gradients pass through layers in this dtype
LEAST_TURNS, MOST_TURNS = 3, 9
CASE_SECONDS = 15.0  # for the turns of a case
PREPARATION_SECONDS = 12.0  # of a case: weights, thresholds, the check, and kernels compiled at the first call
SLACK = 1.5  # a model is slower than it was calculated


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passes:
    """What is timed: both passes go over all batches."""

    lm: LanguageModel
    sited: tuple[SitedSae, ...]
    method: Method
    batches: list[Batch]

    def bare(self) -> None:
        """Without SAEs, to the lowest site."""
        for batch in self.batches:
            capture(self.lm, batch, [self.sited[0].wiring], OBJECTIVES)

    def engine(self) -> dict[str, Tally]:
        """Scores of all sites; what remains are the tallies."""
        tallies = {one.site.path: Tally() for one in self.sited}
        for batch in self.batches:
            score_batch(self.lm, self.sited, self.method, OBJECTIVES, batch, tallies=tallies)
        return tallies


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """The measuring of cases on a device until the time is up."""

    lm_of: Callable[[LmShape], LanguageModel]
    watch: Stopwatch
    deadline: Deadline
    corpus: Corpus
    sae_dtype: torch.dtype
    total_bytes: float
    free_bytes: Callable[[], float]
    most_turns: int = MOST_TURNS

    def needed_seconds(self, case: Case) -> float:
        """Until a case has its fewest turns, if the model is not much slower than was calculated."""
        tokens = self.corpus.documents * self.corpus.document_tokens
        cost = calculate(case)
        passes = LEAST_TURNS + 3  # turns, memory, a first look, stages
        return PREPARATION_SECONDS + SLACK * passes * tokens * (cost.bare + cost.engine) / 1e6

    def measure(self, case: Case) -> Outcome:
        """The case with its numbers, or why it has none. An error that is nobody's lack of memory is raised."""
        if not self.deadline.fits(self.needed_seconds(case)):
            return _skipped(case, f"{self.deadline.left():.0f} s were left")
        try:
            lm = self.lm_of(case.shape)
        except torch.OutOfMemoryError:
            return _skipped(case, "the model alone is more than the device's memory")
        shared = shares_weights(case, self.sae_dtype, self.total_bytes)
        if reason := why_no_room(case, self.sae_dtype, shared=shared, free_bytes=self.free_bytes()):
            return _skipped(case, reason)
        budget = self.corpus.tokens_per_batch
        while budget >= self.corpus.document_tokens:
            try:
                return self._measure(lm, case, budget, shared=shared)
            except WrongAnswer as error:
                return Outcome(case=case, state=State.WRONG, reason=str(error))
            except torch.OutOfMemoryError:
                budget //= 2
            _give_back()
        return _skipped(case, f"out of memory even with {2 * budget:,} tokens in a batch")

    def _measure(self, lm: LanguageModel, case: Case, budget: int, *, shared: bool) -> Outcome:
        batches = random_batches(self.corpus, case.shape.vocabulary, budget)
        sites = [lm.site(f"{lm.layers_path}.{layer}") for layer in case.shape.site_layers(case.sites)]
        sited = random_saes(
            lm,
            sites,
            batches,
            num_latents=case.latents,
            active=case.active,
            dtype=self.sae_dtype,
            shared=shared,
        )
        method = resolve_method(ScoreConfig(preset=case.preset))
        passes = Passes(lm=lm, sited=sited, method=method, batches=batches)
        error = check_scores(lm, sited[len(sited) // 2], method, case)
        _, bare_peak = self.watch.peak_bytes(passes.bare)
        tallies, engine_peak = self.watch.peak_bytes(passes.engine)
        outcome = Outcome(
            case=case,
            state=State.MEASURED,
            error=error,
            tokens=sum(batch.num_scored for batch in batches),
            tokens_per_batch=budget,
            context=float(np.mean([length for batch in batches for length in batch.lengths])),
            active=(min(tally.l0 for tally in tallies.values()), max(tally.l0 for tally in tallies.values())),
            shared_weights=shared,
            sae_bytes=weight_bytes(case, self.sae_dtype, shared=shared),
            bare_peak_bytes=bare_peak,
            engine_peak_bytes=engine_peak,
        )
        return self._timed(outcome, passes)

    def _timed(self, outcome: Outcome, passes: Passes) -> Outcome:
        """With the times of as many turns as there is time for, and of the stages."""
        calls: dict[str, Callable[[], object]] = {"bare": passes.bare, "engine": passes.engine}
        turn_seconds = sum(sum(times) for times in self.watch.turns(calls, 1).values()) / 1e3
        seconds = min(CASE_SECONDS, self.deadline.left())
        turns = int(min(self.most_turns, max(LEAST_TURNS, seconds / turn_seconds)))
        times = self.watch.turns(calls, turns)
        bare, engine = (
            (quantile(times[name], 0.2), quantile(times[name], 0.5), quantile(times[name], 0.8)) for name in calls
        )
        return replace(
            outcome, turns=turns, bare_ms=bare, engine_ms=engine, stages_ms=self.stages(passes.engine, passes.lm.device)
        )

    def stages(self, call: Callable[[], object], device: torch.device) -> dict[str, float]:
        """Milliseconds of each stage of a call, and of what belongs to none."""
        with record(clock_of(device)) as recording:
            whole = self.watch.time(call)()
        thread = DEVICE if device.type == "cuda" else "main"
        found = {stage.name: 1e3 * stage.seconds for stage in recording.breakdown() if stage.thread == thread}
        return {**found, "rest": whole - sum(found.values())}


def check_scores(lm: LanguageModel, sited: SitedSae, method: Method, case: Case) -> float:
    """Relative error of the influences of a short window against the dense reference. WrongAnswer where it is large."""
    document = random_document(0, CHECKED_TOKENS, case.shape.vocabulary)
    (window,) = cut_windows(document, 0, context_length=CHECKED_TOKENS, overlap=0)
    (batch,) = batch_windows([window], tokens_per_batch=CHECKED_TOKENS)
    scores = score_batch(lm, [sited], method, OBJECTIVES, batch).sites[sited.site.path]
    activation_TC, influence_TC = dense_influence(lm, sited, method, OBJECTIVES[0], window)
    allowed = ALLOWED_ERROR[lm.dtype]
    influence = scores.activation * scores.projections[OBJECTIVES[0].name]
    errors = {
        "activations": relative_error(scores, scores.activation, activation_TC),
        "influences": relative_error(scores, influence, influence_TC),
    }
    for name, error in errors.items():
        if not error <= allowed:
            raise WrongAnswer(f"{name} differ by {error:.3g} of their norm from the dense reference; {allowed} allowed")
    return errors["influences"]


def relative_error(scores: SparseScores, values: np.ndarray, truth_TC: torch.Tensor) -> float:
    """Norm of what the values of the sparse scores miss, as a share of the truth's."""
    found_TC = np.zeros(truth_TC.shape, np.float64)
    token_Z = np.repeat(np.arange(len(found_TC)), np.diff(scores.indptr))
    found_TC[token_Z, scores.indices] = values
    expected_TC = truth_TC.detach().double().cpu().numpy()
    return float(np.linalg.norm(found_TC - expected_TC) / np.linalg.norm(expected_TC))


def waiting(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[Case]:
    """The cases that have no outcome yet, in order."""
    done = {str(outcome.case) for outcome in outcomes}
    return [case for case in cases if str(case) not in done]


def _skipped(case: Case, reason: str) -> Outcome:
    return Outcome(case=case, state=State.SKIPPED, reason=reason)


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
