"""Extractions that grow: more documents, longer contexts, more sites.

Each function measures one size in one round, after a run that is not timed, so that compiled kernels are loaded. The
sites carry top-k SAEs of random directions, so that as many latents fire on every token at any size.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth.cost import CPU_SECONDS, PEAK, SECONDS, Found, measure, measure_short
from gradsae_fast.config import config_from_tables
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.extract import ExtractReport, extract
from gradsae_fast.model.capture import capture
from gradsae_fast.prepare import Prepared, prepare
from gradsae_fast.ranking import rank_documents, rank_latents
from gradsae_fast.records import Segment, TokenDocument
from gradsae_fast.store import ScoreWriter, open_scores

WARM_UP_DOCUMENTS = 20
TURNS = 2
MODEL, EXTRACTION = "model alone, forward and backward", "extraction"
ENGINE, BEGINNING = "extraction less the model", "extraction: before the first segment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is extracted with, on disk."""

    model: Path
    sae: Path
    corpus: Path
    threads: int
    num_layers: int

    def tables(self, store: Path, **corpus: Any) -> dict[str, Any]:
        """The configuration of a run at the lowest layer; no norm makes a token a sink, so that none is measured."""
        return {
            "model": {"path": str(self.model), "dtype": "float32", "device": "cpu"},
            "sae": [{"path": str(self.sae), "site": "model.layers.0"}],
            "corpus": {"path": str(self.corpus), "bos": "never", **corpus},
            "score": {"sink_norm_ratio": 0.0},
            "store": {"path": str(store)},
            "run": {"threads": self.threads, "force": True},
        }


def of_documents(source: Source, count: int) -> Found:
    """A whole extraction of `count` short documents, planning and gate included, then questions to its store."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "scores"
        _extract(source, Path(folder) / "warm", WARM_UP_DOCUMENTS)
        report = measure(EXTRACTION, lambda: _extract(source, store, count), found)
        found[BEGINNING, SECONDS] = found[EXTRACTION, SECONDS] - report.seconds
        opened = open_scores(store)
        if opened.num_documents != count:
            raise AssertionError(f"the store has {opened.num_documents} documents, expected {count}")
        last = opened.segments[-1].document_keys()[-1]
        questions: dict[str, Callable[[], Any]] = {
            "rank latents of the corpus": lambda: rank_latents(open_scores(store)),
            "rank latents of one document": lambda: rank_latents(open_scores(store), document=last),
            "rank documents of a latent": lambda: rank_documents(open_scores(store), latent=0),
        }
        for name, question in questions.items():
            measure_short(name, question, found)
        found["store", "bytes on disk"] = float(sum(p.stat().st_size for p in store.rglob("*") if p.is_file()))
    return found


def _extract(source: Source, store: Path, count: int) -> ExtractReport:
    return extract(config_from_tables(source.tables(store, context_length=128, overlap=0, max_documents=count)))


def of_context(source: Source, length: int) -> Found:
    """One text in windows of `length` tokens; costs are those of one window."""
    with tempfile.TemporaryDirectory() as folder:
        tables = source.tables(Path(folder) / "plan", context_length=length, overlap=0)
        tables["run"]["tokens_per_batch"] = max(length, 2048)
        prepared = prepare(config_from_tables(tables))
        found = _against_the_model(prepared, Path(folder))
    share = length / prepared.plan.num_tokens
    return {key: amount if key[1] == PEAK else share * amount for key, amount in found.items()}


def of_sites(source: Source, preset: str, count: int) -> Found:
    """One window at so many sites, spread evenly from the lowest layer on, which fixes what the model costs."""
    with tempfile.TemporaryDirectory() as folder:
        tables = source.tables(Path(folder) / "plan", context_length=512, overlap=0)
        layers = [number * source.num_layers // count for number in range(count)]
        tables["sae"] = [{"path": str(source.sae), "site": f"model.layers.{layer}"} for layer in layers]
        tables["score"]["preset"] = preset
        return _against_the_model(prepare(config_from_tables(tables)), Path(folder))


def _against_the_model(prepared: Prepared, folder: Path) -> Found:
    """The model's own forward and backward pass, the extraction of the same tokens, and the difference; in turns."""
    first: Found = {}  # its peak counts, as nothing is mapped yet; its times do not, as nothing is compiled yet
    measure(EXTRACTION, lambda: _score_and_write(prepared, folder / "first"), first)
    _pass_through_model(prepared)
    turns: list[Found] = []
    for turn in range(TURNS):
        turns.append({})
        measure(MODEL, lambda: _pass_through_model(prepared), turns[-1])
        measure(EXTRACTION, partial(_score_and_write, prepared, folder / str(turn)), turns[-1])
        for unit in (SECONDS, CPU_SECONDS):
            turns[-1][ENGINE, unit] = turns[-1][EXTRACTION, unit] - turns[-1][MODEL, unit]
    _check(prepared, folder / "first")
    found = {key: statistics.median(turn[key] for turn in turns) for key in turns[0] if key[1] != PEAK}
    return found | {key: amount for key, amount in first.items() if key[1] == PEAK}


def _check(prepared: Prepared, store: Path) -> None:
    """AssertionError where the store has not what was to be scored."""
    stored = open_scores(store)
    if stored.num_tokens != prepared.plan.num_tokens or len(stored.sites) != len(prepared.sited):
        raise AssertionError(f"{stored} holds another number of tokens or sites than was asked for")


def _pass_through_model(prepared: Prepared) -> None:
    wirings = [one.wiring for one in prepared.sited]
    for _, documents in _segments(prepared):
        windows = [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]
        for batch in prepared.batches(windows):
            capture(prepared.lm, batch, wirings, prepared.objectives)


def _score_and_write(prepared: Prepared, store: Path) -> None:
    with ScoreWriter.create_or_resume(store, run={}, identity={}, num_segments=len(prepared.plan.segments)) as writer:
        for segment, documents in _segments(prepared):
            writer.write(prepared.score_segment(segment.index, documents))


def _segments(prepared: Prepared) -> Iterator[tuple[Segment, list[TokenDocument]]]:
    return read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules)
