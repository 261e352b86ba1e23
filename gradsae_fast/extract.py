"""The straight line: documents become segments, segments become sparse scores, scores become a store.

While the device scores a segment, the next one is tokenised on a second thread and the last one is put in order,
compressed and committed on a third. Segments are committed in the plan's order, each after the one before it.

Running the same command again goes on where the last one stopped: committed segments are skipped.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradsae_fast.ablate import check_ablatable
from gradsae_fast.assemble import SegmentBuilder
from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.device_clock import clock_of
from gradsae_fast.exact import ExactReport, exact_dense
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.overlap import Behind, ahead
from gradsae_fast.prepare import Prepared, plan_facts, prepare, with_sink_limits
from gradsae_fast.probe import check_run, measure_medians
from gradsae_fast.quality import Tally
from gradsae_fast.ranking.index import build_index
from gradsae_fast.records import Batch
from gradsae_fast.stages import Recording, each, record, span
from gradsae_fast.store import ScoreWriter, open_scores
from gradsae_fast.store.dictionary import dictionary_record
from gradsae_fast.store.durable import storage_errors
from gradsae_fast.store.facts import read_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is; sent after every batch, and at the end."""

    num_tokens: int  # scored so far, earlier runs of the same store included
    total_tokens: int
    num_segments: int  # committed so far
    total_segments: int
    tokens_per_second: float  # of this run
    bytes_written: int  # by this run
    l0: Mapping[str, float]
    fvu: Mapping[str, float]

    @property
    def seconds_left(self) -> float:
        """Expected seconds until the end, at the present speed."""
        left = self.total_tokens - self.num_tokens
        return left / self.tokens_per_second if self.tokens_per_second else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What a run did."""

    store: Path
    num_segments: int  # written by this run
    num_skipped: int  # were there already
    num_tokens: int  # scored by this run
    seconds: float  # of scoring and writing, without loading and planning
    bytes_written: int
    l0: Mapping[str, float]
    fvu: Mapping[str, float]
    exact: ExactReport | None = None  # of the pass over dense latents, where one was asked for
    profile: Recording | None = None  # where the time of scoring and writing went, where that was asked for
    trace: Path | None = None  # the same, span by span, as a Chrome trace


def extract(
    config: ExtractConfig,
    *,
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
    on_message: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ExtractReport:
    """Score every token of the corpus once and keep the scores in a store.

    `objectives` are functions of your own, by the names that `config.score.objectives` uses for them. `documents` (str,
    mappings or Documents) are scored in place of the corpus that `config` names; they are iterated twice if they can
    be, the second time on another thread. `on_message` gets the decisions that
    were taken, as sentences. Raises the errors of `gradsae_fast.errors`; what was committed before stays valid.
    """
    tell = on_message or (lambda _: None)
    prepared = prepare(config, objectives, documents)
    if config.run.exact_dense is not None:
        check_ablatable(prepared.sited, prepared.method)
    _tell_decisions(prepared, tell)
    passed = read_facts(Path(config.store.path), "gate") or _pass_gate(prepared, tell)
    with _open_writer(prepared) as writer:
        _write_once(prepared, writer, passed, tell)
        prepared = with_sink_limits(prepared, passed["median_norms"])
        run = _Run(prepared, writer, on_progress or (lambda _: None))
        report = run.carry_out_recorded() if config.run.trace else run.carry_out()
    if open_scores(report.store).index is None:
        build_index(report.store)
    if config.run.exact_dense is None:
        return report
    return replace(report, exact=exact_dense(prepared, share=config.run.exact_dense, tell=tell))


class _Run:
    """The loop over segments, and the counts that it reports."""

    def __init__(self, prepared: Prepared, writer: ScoreWriter, on_progress: Callable[[Progress], None]) -> None:
        self.prepared = prepared
        self.writer = writer
        self.on_progress = on_progress
        self.storing = Behind(self.write, thread="store")
        self.skipped = frozenset(writer.committed)
        segments = prepared.plan.segments
        self.tokens_before = sum(segment.num_tokens for segment in segments if segment.index in self.skipped)
        self.tallies = {one.site.path: Tally() for one in prepared.sited}
        self.num_tokens = 0
        self.num_written = 0
        self.bytes_written = 0
        self.started = time.perf_counter()

    def carry_out_recorded(self) -> ExtractReport:
        """`carry_out`, with its stages measured and a trace of them beside the store; nothing scored leaves none."""
        store = Path(self.prepared.config.store.path).resolve()
        trace = store.with_name(f"{store.name}.trace.json")
        with record(clock_of(self.prepared.lm.device)) as recording:
            report = self.carry_out()
        if not report.num_segments:
            return report
        with storage_errors(trace):
            recording.write_trace(trace)
        return replace(report, profile=recording, trace=trace)

    def carry_out(self) -> ExtractReport:
        prepared = self.prepared
        tokenised = each(
            "tokenise",
            read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, self.skipped),
        )
        with self.storing:
            for segment, documents in each("wait for tokens", ahead(tokenised, thread="tokens")):
                scored = prepared.begin_segment(segment.index, documents, tallies=self.tallies, on_batch=self.count)
                with span("wait for store"):
                    self.storing.hand_over(scored)
            with span("wait for store"):
                self.storing.finish()
        self.tell_progress()
        return ExtractReport(
            store=Path(prepared.config.store.path),
            num_segments=self.num_written,
            num_skipped=len(self.skipped),
            num_tokens=self.num_tokens,
            seconds=time.perf_counter() - self.started,
            bytes_written=self.bytes_written,
            l0={path: tally.l0 for path, tally in self.tallies.items()},
            fvu={path: tally.fvu for path, tally in self.tallies.items()},
        )

    def write(self, scored: SegmentBuilder) -> None:
        """Put a segment in order and commit it; on the storing thread."""
        segment = scored.finish()
        with span("store"):
            self.bytes_written += self.writer.write(segment).num_bytes
        self.num_written += 1

    def count(self, batch: Batch) -> None:
        """After each batch: a segment that could not be stored stops the run here, and not a segment later."""
        self.storing.check()
        self.num_tokens += batch.num_scored
        self.tell_progress()

    def tell_progress(self) -> None:
        self.on_progress(
            Progress(
                num_tokens=self.tokens_before + self.num_tokens,
                total_tokens=self.prepared.plan.num_tokens,
                num_segments=len(self.skipped) + self.num_written,
                total_segments=len(self.prepared.plan.segments),
                tokens_per_second=self.num_tokens / (time.perf_counter() - self.started),
                bytes_written=self.bytes_written,
                l0={path: tally.l0 for path, tally in self.tallies.items()},
                fvu={path: tally.fvu for path, tally in self.tallies.items()},
            )
        )


def _open_writer(prepared: Prepared) -> ScoreWriter:
    store = prepared.config.store
    return ScoreWriter.create_or_resume(
        store.path,
        run=prepared.facts(),
        identity=prepared.identity(),
        num_segments=len(prepared.plan.segments),
        precision_bits=store.precision_bits,
        profile=store.profile,
        aggregates_include_special=prepared.method.include_special,
    )


def _pass_gate(prepared: Prepared, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure sinks and pass the gate, before there is a store; what is found is kept for resumed runs."""
    medians = measure_medians(prepared)
    report = check_run(with_sink_limits(prepared, medians))
    for check in report.checks:
        tell(f"gate: {check.name} at {check.site} {'passed' if check.passed else 'FAILED, forced'}: {check.found}")
    return {"median_norms": medians, **report.to_json()}


def _write_once(prepared: Prepared, writer: ScoreWriter, passed: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Complete what the store keeps once per run; the gate comes last, as its presence says that a run was begun."""
    if writer.facts("plan") is None:
        writer.write_facts("plan", plan_facts(prepared))
    if not dictionary_record(writer.path).exists():
        norms = {one.site.path: one.sae.w_dec_CD.float().norm(dim=1).cpu().numpy() for one in prepared.sited}
        writer.write_dictionary(tokens=_vocabulary(prepared), decoder_norms=norms)
    if writer.facts("gate") is None:
        writer.write_facts("gate", passed)
    else:
        failed = ", ".join(check["name"] for check in passed["checks"] if not check["passed"])
        verdict = f"failed ({failed}) and was forced" if failed else "was passed"
        tell(f"resuming: {len(writer.committed)} segments are committed; the gate {verdict} when the store was begun")


def _vocabulary(prepared: Prepared) -> list[str]:
    """The token strings of the vocabulary, as they read in text."""
    tokenizer = prepared.lm.tokenizer
    return [tokenizer.decode([index]) for index in range(len(tokenizer))]


def _tell_decisions(prepared: Prepared, tell: Callable[[str], None]) -> None:
    lm, plan, method = prepared.lm, prepared.plan, prepared.method
    tell(f"model: {lm.source} ({type(lm.model).__name__}, {str(lm.dtype).removeprefix('torch.')}, {lm.device})")
    for one in prepared.sited:
        facts = one.sae.facts
        tell(
            f"SAE: {facts.source} ({facts.format} {facts.architecture}, {facts.num_latents} latents) at {one.site.path}"
            f"; published L0 {facts.published_l0}, FVU {facts.published_fvu}"
        )
    tell(f"tokens: {prepared.bos_decision}")
    where = "error term kept" if method.use_error_term else f"reconstruction spliced at {method.splice} positions"
    where += f", integrated gradients over {method.path_steps} points" if method.path_steps else ""
    where += ", activations less those of a patch text" if method.patch else ""
    tell(f"method: {method.preset}, {where}; objective {', '.join(method.objectives)}; positive raises it")
    tell(f"corpus: {plan.num_documents} documents, {plan.num_tokens} tokens, {len(plan.segments)} segments")
