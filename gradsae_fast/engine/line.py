"""The straight line of a run, in the steps that engines put together: begin, score segments, finish.

While the device scores a segment, the next one is tokenised on a second thread and the last one is put in order,
compressed and committed on a third. A process commits its segments in the plan's order, each after the one before it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradsae_fast.ablate import check_ablatable
from gradsae_fast.assemble import SegmentBuilder
from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.device_clock import clock_of
from gradsae_fast.engine.growth import check_growth
from gradsae_fast.engine.report import ExtractReport, Progress
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.overlap import Behind, ahead
from gradsae_fast.prepare import Prepared, plan_facts, prepare, with_sink_limits
from gradsae_fast.probe import check_run, measure_medians
from gradsae_fast.quality import Tally
from gradsae_fast.records import Batch, Segment, TokenDocument
from gradsae_fast.stages import each, record, span
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.format.layout import check_names
from gradsae_fast.store.places.durable import storage_errors
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.facts import read_facts
from gradsae_fast.store.records.identity import RUN_FILE, read_run
from gradsae_fast.store.recovery import refuse_strangers
from gradsae_fast.store.sidecars.dictionary import dictionary_record

Tell = Callable[[str], None]
Documents = Iterator[tuple[Segment, list[TokenDocument]]]


class Begun:
    """A run whose store is begun, open for writing; made by `begin`.

    Attributes:
        prepared: model, SAEs, corpus and plan, sinks recognised as the store says.
        writer: of the store; closed on leaving the `with` block.
    """

    def __init__(self, prepared: Prepared, writer: ScoreWriter) -> None:
        self.prepared = prepared
        self.writer = writer

    @property
    def all_segments(self) -> frozenset[int]:
        """The numbers of all segments of the plan."""
        return frozenset(segment.index for segment in self.prepared.plan.segments)

    def documents(self, segments: frozenset[int]) -> Documents:
        """Read the corpus once, to its end, for these segments."""
        prepared = self.prepared
        skip = self.all_segments - segments
        return read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, skip)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()


def begin(
    config: ExtractConfig,
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
    *,
    tell: Tell,
    shared: bool = False,
) -> Begun:
    """Load, plan, pass the gate and open the store, new or to go on with; each is done once for all of a run's starts.

    `shared` is for one of many workers. They may begin a store all at once: what the first of them left in it holds.
    Raises the errors of `gradsae_fast.errors`.
    """
    _check_store(config, shared=shared)
    prepared = prepare(config, objectives, documents)
    if config.run.exact_dense is not None:
        check_ablatable(prepared.sited, prepared.method)
    _tell_decisions(prepared, tell)
    if config.store.append:
        check_growth(prepared, tell)
    passed = read_facts(place_of(config.store.path), "gate") or _pass_gate(prepared, tell)
    writer = _open_writer(prepared, shared=shared)
    try:
        passed = _write_once(prepared, writer, passed, tell)
    except BaseException:
        writer.close()
        raise
    return Begun(with_sink_limits(prepared, passed["median_norms"]), writer)


def score(
    begun: Begun,
    segments: frozenset[int],
    *,
    on_progress: Callable[[Progress], None],
    read: Callable[[frozenset[int]], Documents] | None = None,
    tallies: Mapping[str, Tally] | None = None,
) -> ExtractReport:
    """Score and commit those of these segments that are not committed yet; the report is about these segments.

    `read` gives their documents, in order; by default the corpus is read through for them. `tallies`, one for each
    site, are added to.
    """
    tallies = tallies or new_tallies(begun)
    run = _Run(begun, segments, on_progress, read or begun.documents, tallies)
    return run.carry_out_recorded() if begun.prepared.config.run.trace else run.carry_out()


def new_tallies(begun: Begun) -> dict[str, Tally]:
    """Empty tallies, one for each site."""
    return {one.site.path: Tally() for one in begun.prepared.sited}


class _Run:
    """The loop over segments, and the counts that it reports."""

    def __init__(
        self,
        begun: Begun,
        segments: frozenset[int],
        on_progress: Callable[[Progress], None],
        read: Callable[[frozenset[int]], Documents],
        tallies: Mapping[str, Tally],
    ) -> None:
        self.prepared = begun.prepared
        self.writer = begun.writer
        self.on_progress = on_progress
        self.read = read
        self.storing = Behind(self.write, thread="store")
        self.segments = [segment for segment in begun.prepared.plan.segments if segment.index in segments]
        self.skipped = segments & begun.writer.committed
        self.tokens_before = sum(segment.num_tokens for segment in self.segments if segment.index in self.skipped)
        self.tallies = tallies
        self.num_tokens = 0
        self.num_written = 0
        self.bytes_written = 0
        self.started = time.perf_counter()

    def carry_out_recorded(self) -> ExtractReport:
        """`carry_out`, with its stages measured and a trace of them; nothing scored leaves none.

        The trace lies beside the store, or in the working folder where the store lies in a bucket.
        """
        store = place_of(self.prepared.config.store.path)
        store = store.resolve() if isinstance(store, Path) else Path(store.name)
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
        wanted = frozenset(segment.index for segment in self.segments) - self.skipped
        tokenised = each("tokenise", self.read(wanted))
        with self.storing:
            for segment, documents in each("wait for tokens", ahead(tokenised, thread="tokens")):
                if self.is_done(segment):
                    continue
                check_names({column for one in documents for column in one.document.metadata})
                scored = prepared.begin_segment(segment.index, documents, tallies=self.tallies, on_batch=self.count)
                with span("wait for store"):
                    self.storing.hand_over(scored)
            with span("wait for store"):
                self.storing.finish()
        self.tell_progress()
        return ExtractReport(
            store=place_of(prepared.config.store.path),
            num_segments=self.num_written,
            num_skipped=len(self.skipped),
            num_tokens=self.num_tokens,
            seconds=time.perf_counter() - self.started,
            bytes_written=self.bytes_written,
            l0={path: tally.l0 for path, tally in self.tallies.items()},
            fvu={path: tally.fvu for path, tally in self.tallies.items()},
        )

    def is_done(self, segment: Segment) -> bool:
        """Whether another worker has committed a segment since this one began."""
        if not self.writer.shared or not self.writer.is_committed(segment.index):
            return False
        self.skipped |= {segment.index}
        self.tokens_before += segment.num_tokens
        return True

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
                total_tokens=sum(segment.num_tokens for segment in self.segments),
                num_segments=len(self.skipped) + self.num_written,
                total_segments=len(self.segments),
                tokens_per_second=self.num_tokens / (time.perf_counter() - self.started),
                bytes_written=self.bytes_written,
                l0={path: tally.l0 for path, tally in self.tallies.items()},
                fvu={path: tally.fvu for path, tally in self.tallies.items()},
            )
        )


def _check_store(config: ExtractConfig, *, shared: bool) -> None:
    """Refuse, before minutes of loading, a place that `_open_writer` would refuse; it is asked again there."""
    place = place_of(config.store.path)
    with storage_errors(place):
        if (place / RUN_FILE).exists():
            read_run(place)
            if not shared:
                with locked(place):
                    pass  # nobody else writes to it now
        elif place.exists():
            refuse_strangers(place)


def _open_writer(prepared: Prepared, *, shared: bool) -> ScoreWriter:
    store = prepared.config.store
    return ScoreWriter.create_or_resume(
        store.path,
        run=prepared.facts(),
        identity=prepared.identity(),
        num_segments=len(prepared.plan.segments),
        precision_bits=store.precision_bits,
        profile=store.profile,
        aggregates_include_special=prepared.method.include_special,
        append=store.append,
        shared=shared,
    )


def _pass_gate(prepared: Prepared, tell: Tell) -> dict[str, Any]:
    """Measure sinks and pass the gate, before there is a store; what is found is kept for resumed runs."""
    medians = measure_medians(prepared)
    report = check_run(with_sink_limits(prepared, medians))
    for check in report.checks:
        tell(f"gate: {check.name} at {check.site} {'passed' if check.passed else 'FAILED, forced'}: {check.found}")
    return {"median_norms": medians, **report.to_json()}


def _write_once(prepared: Prepared, writer: ScoreWriter, passed: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Complete what the store keeps once per run; the gate comes last, as its presence says that a run was begun.

    Returns what the store says that the gate found, which may be what another worker found.
    """
    writer.keep_facts(writer.generation.name_of("plan"), plan_facts(prepared))
    if not dictionary_record(writer.path).exists():
        norms = {one.site.path: one.sae.w_dec_CD.float().norm(dim=1).cpu().numpy() for one in prepared.sited}
        writer.write_dictionary(tokens=_vocabulary(prepared), decoder_norms=norms)
    found = writer.facts(writer.generation.name_of("gate")) or writer.facts("gate")
    if found is None:
        return writer.keep_facts("gate", passed)
    failed = ", ".join(check["name"] for check in found["checks"] if not check["passed"])
    verdict = f"failed ({failed}) and was forced" if failed else "was passed"
    there = len(writer.committed)
    resuming = f"resuming: {there} {'segment is' if there == 1 else 'segments are'} committed; " if there else ""
    tell(f"{resuming}the gate {verdict} when the store was begun")
    return found


def _vocabulary(prepared: Prepared) -> list[str]:
    """The token strings of the vocabulary, as they read in text."""
    tokenizer = prepared.lm.tokenizer
    return [tokenizer.decode([index]) for index in range(len(tokenizer))]


def _tell_decisions(prepared: Prepared, tell: Tell) -> None:
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
