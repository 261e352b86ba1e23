"""The straight line: documents become segments, segments become Jacobian blocks, blocks become a store.

Running the same command again goes on where the last one stopped. Corpus, windows, batches and masks are those of
`gradsae extract`, attention sinks at either site among them; the configuration is the same one, with two SAEs: the
lower, then the upper. The model runs up to the layer of the upper site and no further.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.assemble import SegmentBuilder
from gradsae_fast.config import ExtractConfig, ScoreConfig
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.errors import ConfigError
from gradsae_fast.jacobian.block import Blocks, DictionaryPair, Point, token_blocks
from gradsae_fast.jacobian.edges import SegmentJacobian, block_edges
from gradsae_fast.jacobian.fit import check_fit
from gradsae_fast.jacobian.path import find_path, nothing_above
from gradsae_fast.jacobian.store import JacobianRun, JacobianWriter, open_writer
from gradsae_fast.model.states import hidden_states, real_rows
from gradsae_fast.positions import position_masks, scored_positions
from gradsae_fast.prepare import Prepared, plan_facts, prepare, with_sink_limits
from gradsae_fast.records import Array, Batch, SparseScores, TokenDocument, TokenMask, Window, empty_scores
from gradsae_fast.score import BatchScores
from gradsae_fast.sparse_code import Code
from gradsae_fast.store.places.place import disk_path_of
from gradsae_fast.store.records.facts import read_facts, write_facts

PAIRS_PER_PASS = 8192
LOWER, UPPER = "lower", "upper"


@dataclass(frozen=True, slots=True, kw_only=True)
class JacobianReport:
    """What a run did."""

    store: Path
    num_segments: int  # written by this run
    num_skipped: int  # were there already
    num_tokens: int  # of this run
    num_pairs: int  # of this run
    seconds: float  # without loading and planning
    bytes_written: int


def extract_jacobian(
    config: ExtractConfig,
    *,
    point: Point = Point.RECONSTRUCTION,
    pairs_per_pass: int = PAIRS_PER_PASS,
    documents: Iterable[Any] | None = None,
    on_message: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> JacobianReport:
    """Blocks of every token of a corpus, kept in a store; `config.saes` are the lower and the upper SAE with sites.

    `pairs_per_pass` bounds memory: tokens x latents that pass the network between the sites together. `on_progress`
    gets tokens done and tokens in all after every batch. Raises the errors of `gradsae_fast.errors`.
    """
    store = disk_path_of(config.store.path)
    _check(config, pairs_per_pass)
    tell = on_message or (lambda _: None)
    prepared = prepare(config, None, documents)
    job = _job(prepared, Point(point), pairs_per_pass)
    path = job.pair.path
    tell(f"between {path.reads.path} and {path.writes.path}: {' · '.join(path.names)}")
    tell(f"derivative at the lower {'hidden state' if job.pair.point is Point.HIDDEN else 'reconstruction'}")
    passed = read_facts(store, "gate") or check_fit(prepared, tell)
    run = JacobianRun(
        identity=_identity(prepared, job),
        num_segments=len(prepared.plan.segments),
        precision_bits=config.store.precision_bits,
        profile=config.store.profile,
        run=prepared.facts(),
    )
    with open_writer(store, run) as writer:
        if read_facts(writer.path, "plan") is None:
            write_facts(writer.path, "plan", plan_facts(prepared))
        if read_facts(writer.path, "gate") is None:
            write_facts(writer.path, "gate", passed)
        job = dataclasses.replace(job, prepared=with_sink_limits(prepared, passed["median_norms"]))
        return _carry_out(job, writer, on_progress or (lambda _done, _total: None))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """Everything that a batch needs."""

    prepared: Prepared
    pair: DictionaryPair
    pairs_per_pass: int

    def blocks(self, batch: Batch) -> tuple[Blocks, Array]:
        """Blocks and masks (uint8 [N]) of the scored positions of a batch, window after window."""
        lm, path = self.prepared.lm, self.pair.path
        with nothing_above(lm, path.writes.layer):
            hidden = hidden_states(lm, batch, [path.reads, path.writes])
        scored_N = torch.from_numpy(np.flatnonzero(scored_positions(batch))).to(lm.device)
        assert len(hidden[path.reads.path]) == len(real_rows(batch))
        lower_ND, upper_NE = hidden[path.reads.path][scored_N], hidden[path.writes.path][scored_N]
        lower, upper = self.prepared.sited
        sink_N = lower.sinks(lower_ND, lower_ND) | upper.sinks(upper_NE, upper_NE)
        mask_N = position_masks(batch)[scored_positions(batch)]
        mask_N |= np.where(_numpy(sink_N), np.uint8(TokenMask.NORM), np.uint8(0))
        return token_blocks(self.pair, lower_ND, upper_NE, pairs_per_pass=self.pairs_per_pass), mask_N


def _check(config: ExtractConfig, pairs_per_pass: int) -> None:
    if len(config.saes) != 2 or any(sae.site is None for sae in config.saes):
        raise ConfigError(
            "the Jacobian needs two SAEs, lower and upper, each with its site; give --site-in, --site-out."
        )
    if config.saes[0].site == config.saes[1].site:
        raise ConfigError(
            f"both SAEs are at {config.saes[0].site}; expected --site-in below an MLP and --site-out above it."
        )
    counting = ScoreConfig(sink_norm_ratio=config.score.sink_norm_ratio, mask_token_ids=config.score.mask_token_ids)
    if config.score != counting:
        raise ConfigError(
            "of [score] only sink_norm_ratio and mask_token_ids have an effect on a Jacobian; leave the others out."
        )
    if config.run.exact_dense is not None or config.corpus.patch_column is not None or config.store.append:
        raise ConfigError("exact_dense, patch_column and append have no effect on a Jacobian; leave them out.")
    if pairs_per_pass < 1:
        raise ConfigError(f"pairs_per_pass is {pairs_per_pass}; expected at least 1.")


def _job(prepared: Prepared, point: Point, pairs_per_pass: int) -> _Job:
    lower, upper = prepared.sited
    path = find_path(prepared.lm, lower.site, upper.site)
    pair = DictionaryPair(lower=lower.sae, upper=upper.sae, path=path, point=point)
    return _Job(prepared=prepared, pair=pair, pairs_per_pass=pairs_per_pass)


def _identity(prepared: Prepared, job: _Job) -> dict[str, Any]:
    """What the blocks depend on: the run's identity without objectives and splices, and what is special here."""
    identity = {name: facts for name, facts in prepared.identity().items() if name not in ("method", "functions")}
    path = job.pair.path
    return identity | {
        "jacobian": {
            "site_in": path.reads.path,
            "site_out": path.writes.path,
            "modules": list(path.names),
            "point": str(job.pair.point),
            "pairs_per_pass": job.pairs_per_pass,
            "sink_norm_ratio": prepared.config.score.sink_norm_ratio,
        }
    }


def _carry_out(job: _Job, writer: JacobianWriter, on_progress: Callable[[int, int], None]) -> JacobianReport:
    prepared, skipped, started = job.prepared, writer.committed, time.perf_counter()
    total = prepared.plan.num_tokens
    done = before = sum(s.num_tokens for s in prepared.plan.segments if s.index in skipped)
    num_pairs = num_bytes = 0
    for segment, documents in read_segments(
        prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules, skipped
    ):
        builder = _SegmentJob(job, segment.index, documents)
        for batch in builder.batches():
            builder.add(batch)
            done += batch.num_scored
            on_progress(done, total)
        finished = builder.finish()
        num_pairs += len(finished.value_P)
        num_bytes += writer.write(finished).num_bytes
    return JacobianReport(
        store=writer.path,
        num_segments=len(writer.committed) - len(skipped),
        num_skipped=len(skipped),
        num_tokens=done - before,
        num_pairs=num_pairs,
        seconds=time.perf_counter() - started,
        bytes_written=num_bytes,
    )


class _SegmentJob:
    """Collects the batches of a segment, which come in order of length, and puts them back into corpus order."""

    def __init__(self, job: _Job, index: int, documents: Sequence[TokenDocument]) -> None:
        self.job, self.documents = job, documents
        lower, upper = job.pair.lower, job.pair.upper
        self.builder = SegmentBuilder(
            index,
            documents,
            num_latents={LOWER: lower.num_latents, UPPER: upper.num_latents},
            method=dataclasses.replace(job.prepared.method, objectives=()),
            quarantine=False,
        )
        self.rows: list[Array] = []
        self.parts: list[tuple[Array, Array]] = []  # sizes of blocks, and their values

    def batches(self) -> list[Batch]:
        prepared = self.job.prepared
        windows = [w for slot, document in enumerate(self.documents) for w in prepared.cut(document, slot)]
        return prepared.batches(windows)

    def add(self, batch: Batch) -> None:
        blocks, mask_N = self.job.blocks(batch)
        pair = self.job.pair
        sites = {
            LOWER: _sparse(blocks.lower, pair.lower.num_latents),
            UPPER: _sparse(blocks.upper, pair.upper.num_latents),
        }
        self.builder.add(batch, BatchScores(sites=sites, mask_N=mask_N, values={}))
        self.rows += [self._destination(window) for window in batch.windows]
        sizes_N = np.diff(block_edges(sites[LOWER].indptr, sites[UPPER].indptr))
        self.parts.append((sizes_N, _numpy(blocks.value_P)))

    def finish(self) -> SegmentJacobian:
        scores = self.builder.finish()
        empty = empty_scores(0, 0, ())
        order_N = np.argsort(np.concatenate([np.zeros(0, np.int64), *self.rows]))
        sizes_N = np.concatenate([np.zeros(0, np.int64), *(sizes for sizes, _ in self.parts)])
        value_P = np.concatenate([empty.activation, *(values for _, values in self.parts)])
        return SegmentJacobian(
            index=scores.index,
            tokens=scores.tokens,
            documents=scores.documents,
            lower=scores.sites[LOWER],
            upper=scores.sites[UPPER],
            value_P=_reordered(value_P, sizes_N, order_N),
        )

    def _destination(self, window: Window) -> Array:
        return np.arange(window.num_scored) + self.builder.first_row_M[window.slot] + window.first_position


def _reordered(value_P: Array, sizes_N: Array, order_N: Array) -> Array:
    """Blocks of the given sizes in another order of tokens."""
    starts_N, taken_N = (np.cumsum(sizes_N) - sizes_N)[order_N], sizes_N[order_N]
    ends_N = np.cumsum(taken_N)
    return value_P[np.repeat(starts_N - ends_N + taken_N, taken_N) + np.arange(taken_N.sum())]


def _sparse(code: Code, num_latents: int) -> SparseScores:
    rows = code.rows
    return SparseScores(
        indptr=_numpy(rows.indptr).astype(np.int64),
        indices=_numpy(rows.indices),
        activation=_numpy(rows.values),
        projections={},
        num_latents=num_latents,
    )


def _numpy(values: Tensor) -> Array:
    return values.cpu().numpy()
