"""What a run would cost: time, memory and disk, from a short probe on the corpus's first documents."""

import dataclasses
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gradsae_fast.ablate import check_ablatable
from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.errors import ScoreError
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.prepare import Prepared, prepare, with_sink_limits
from gradsae_fast.probe import measure_medians, shortened
from gradsae_fast.records import SegmentScores, TokenDocument
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.places.place import place_of

_PROBE_BATCHES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The size of a run, and its cost as extrapolated from the probe."""

    num_documents: int
    num_tokens: int
    num_segments: int
    probe_tokens: int
    tokens_per_second: float
    seconds: float
    peak_memory_bytes: int  # of this process, model included
    store_bytes: int
    free_bytes: int | None  # on the disk of the store; None for one in a bucket


def estimate(config: ExtractConfig, objectives: Mapping[str, ObjectiveFunction] | None = None) -> Estimate:
    """Plan the run and score its first documents without keeping anything. Raises what `extract` would raise."""
    prepared = prepare(config, objectives)
    if config.run.exact_dense is not None:
        check_ablatable(prepared.sited, prepared.method)
    prepared = with_sink_limits(prepared, measure_medians(prepared))
    documents = _first_documents(prepared)
    prepared.score_segment(0, documents[:1])  # compiles the kernels
    started = time.perf_counter()
    segment = prepared.score_segment(0, documents)
    seconds = time.perf_counter() - started
    num_tokens = len(segment.tokens.token_id)
    if num_tokens == 0:
        raise ScoreError(
            f"all {len(documents)} documents of the probe were left out for NaN or Inf; expected finite numbers. "
            "Run in float32 (--dtype float32)."
        )
    plan = prepared.plan
    return Estimate(
        num_documents=plan.num_documents,
        num_tokens=plan.num_tokens,
        num_segments=len(plan.segments),
        probe_tokens=num_tokens,
        tokens_per_second=num_tokens / seconds,
        seconds=plan.num_tokens * seconds / num_tokens,
        peak_memory_bytes=peak_memory(),
        store_bytes=round(_store_bytes(prepared, segment)),
        free_bytes=_free_bytes(config.store.path),
    )


def _first_documents(prepared: Prepared) -> list[TokenDocument]:
    """Documents with tokens, about two batches; a long one is cut after its first windows, unless its end matters."""
    budget = _PROBE_BATCHES * prepared.config.run.tokens_per_batch
    segments = read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules)
    chosen: list[TokenDocument] = []
    for document in (document for _, documents in islice(segments, 4) for document in documents):
        if budget <= 0:
            break
        if document.num_tokens == 0:
            continue
        if prepared.method.objectives == ("next-token",):
            document = shortened(document, budget)
        chosen.append(document)
        budget -= document.num_tokens
    return chosen


def _store_bytes(prepared: Prepared, probe: SegmentScores) -> float:
    """Bytes of the whole store: of the probe in a store of the same settings, which is made and removed again.

    A segment's arrays have metadata whatever their length: that part grows with segments, the rest with tokens.
    """
    plan = prepared.plan
    fixed, measured = _segment_bytes(prepared, [prepared.score_segment(0, []), dataclasses.replace(probe, index=1)])
    return fixed * len(plan.segments) + (measured - fixed) * plan.num_tokens / len(probe.tokens.token_id)


def _segment_bytes(prepared: Prepared, segments: Sequence[SegmentScores]) -> list[int]:
    store = prepared.config.store
    with (
        tempfile.TemporaryDirectory() as folder,
        ScoreWriter.create_or_resume(
            Path(folder) / "probe",
            run={},
            identity={},
            num_segments=len(segments),
            precision_bits=store.precision_bits,
            profile=store.profile,
            aggregates_include_special=prepared.method.include_special,
        ) as writer,
    ):
        return [writer.write(segment).num_bytes for segment in segments]


def peak_memory() -> int:
    """Bytes that this process held at its peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _free_bytes(store: str) -> int | None:
    place = place_of(store)
    if not isinstance(place, Path):
        return None
    path = place.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free
