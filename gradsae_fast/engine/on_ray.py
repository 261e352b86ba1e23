"""The engine `ray`: segments are scored by a pool of actors on a Ray cluster; this process only hands out numbers.

Rows of a Ray Data set are segment numbers; an actor holds one model and answers with a summary of what it committed.
What a lost actor had in hand is run again, somewhere else, so a segment may be scored twice; it is committed once. What
goes wrong comes back as an answer, because Ray would run an exception again without end.

The store is the source of truth: progress is the commit records that this process sees in it, and a run that was
interrupted, or whose driver died, goes on by the same command.
"""

import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine.actor import Failure, Scorer, StoreBegun, Summary, begin_store
from gradsae_fast.engine.cluster import Crew, cluster, crew_of, describe, quiet
from gradsae_fast.engine.finish import make_index
from gradsae_fast.engine.report import ExtractReport, Progress
from gradsae_fast.errors import EngineError, StoreError
from gradsae_fast.quality import Tally
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records.commits import find_records
from gradsae_fast.store.records.effective import effective
from gradsae_fast.store.records.facts import read_facts
from gradsae_fast.store.records.revisions import read_revisions

STALL_MINUTES = 30.0
_POLL_SECONDS = 1.0
_TASKS_OF_A_WORKER = 8  # at least, where there are segments enough: what one task holds up is shared by few
_MOST_SEGMENTS_OF_A_TASK = 4
_RELEASE_SECONDS = 60.0  # until workers that were ended have let go of the store, at most
_END = object()


def extract_on_ray(
    config: ExtractConfig,
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    scorer: type[Scorer] = Scorer,
) -> ExtractReport:
    """Score what is left of a run on a Ray cluster, and finish it. `scorer` is what workers do.

    Raises:
        EngineError: no cluster; for `stall_minutes` no room for a worker, or nothing committed; workers that failed
            again and again.
        GradsaeError: what a worker raised.
    """
    config = _with_whole_paths(config)
    place = place_of(config.store.path)
    with cluster(config) as ray, quiet(ray):
        crew = crew_of(ray, config)
        if not crew.gpus:
            config = replace(config, model=replace(config.model, device="cpu"))
        tell(f"ray: {crew}; {describe(ray)}")
        begun = _begin(ray, config, crew)
        for message in begun.messages:
            tell(message)
        _expect_store(place)
        watch = _Watch(ray, config, begun, on_progress)
        left = sorted(set(range(len(begun.segment_tokens))) - watch.committed)
        if left:
            watch.follow(_answers(ray, config, crew, left, scorer))
    watch.tell_progress()
    make_index(place, tell=tell, wait=_RELEASE_SECONDS)
    return watch.report(place)


def _with_whole_paths(config: ExtractConfig) -> ExtractConfig:
    """The configuration with local paths from the root on: workers have working folders of their own."""

    def whole(path: str) -> str:
        return str(Path(path).absolute()) if Path(path).exists() else path

    place = place_of(config.store.path)
    return replace(
        config,
        model=replace(config.model, path=whole(config.model.path)),
        saes=tuple(replace(sae, path=whole(sae.path)) for sae in config.saes),
        corpus=replace(config.corpus, path=whole(config.corpus.path)),
        store=replace(config.store, path=str(place.absolute() if isinstance(place, Path) else place)),
    )


def _begin(ray: Any, config: ExtractConfig, crew: Crew) -> StoreBegun:
    """Have a worker begin the store; its process ends with the task, and gives its GPU back."""
    as_worker = ray.remote(num_cpus=crew.cpus, num_gpus=crew.gpus, max_calls=1, max_retries=2)
    try:
        _expect_worker(ray, as_worker, config, crew)
        answer = pickle.loads(ray.get(as_worker(begin_store).remote(config)))
    except ray.exceptions.RayError as error:
        raise EngineError(f"no worker could begin the store: {error}") from error
    if isinstance(answer, Failure):
        raise answer.error
    assert isinstance(answer, StoreBegun)
    return answer


def _expect_worker(ray: Any, as_worker: Any, config: ExtractConfig, crew: Crew) -> None:
    """Wait for room for a worker, not for its work: a corpus may take hours to plan."""
    arrival = as_worker(_arrive).remote()
    try:
        ray.get(arrival, timeout=_stall_seconds(config))
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(arrival, force=True)
        raise EngineError(
            f"no machine had room for a worker of {crew.each} within {_stall_seconds(config) / 60:g} minutes; "
            f"{describe(ray)}. Look for what keeps the machines busy or away, then run the same command again; "
            "--stall-minutes is how long to wait."
        ) from error


def _arrive() -> None:
    """What a worker does to show that there is room for it."""


def _stall_seconds(config: ExtractConfig) -> float:
    return 60 * (config.run.stall_minutes or STALL_MINUTES)


def _expect_store(place: Place) -> None:
    if read_facts(place, "gate") is None:
        raise StoreError(
            f"{place} was begun by a worker, but this machine does not see it; expected a folder that all machines "
            "share, or s3://bucket/prefix"
        )


def _answers(
    ray: Any, config: ExtractConfig, crew: Crew, segments: list[int], scorer: type[Scorer]
) -> Iterator[Summary | Failure]:
    """Have the segments scored; yields what workers answer, as it comes."""
    of_a_task = max(1, min(_MOST_SEGMENTS_OF_A_TASK, len(segments) // (crew.size * _TASKS_OF_A_WORKER)))
    num_tasks = -(-len(segments) // of_a_task)
    rows = ray.data.from_items([{"segment": index} for index in segments], override_num_blocks=num_tasks)
    answers = rows.map_batches(
        scorer,
        fn_constructor_args=(config,),
        batch_size=None,
        batch_format="numpy",
        # A pool that grows adds a worker every half minute; one of fixed size starts them all at once.
        compute=ray.data.ActorPoolStrategy(size=min(crew.size, num_tasks), max_tasks_in_flight_per_actor=1),
        num_gpus=crew.gpus,
        num_cpus=crew.cpus,
    )
    for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for answer in table["answer"].to_pylist():
            yield pickle.loads(answer)


class _Watch:
    """Follows a run from the driver: what workers answer, and what the store shows."""

    def __init__(
        self, ray: Any, config: ExtractConfig, begun: StoreBegun, on_progress: Callable[[Progress], None]
    ) -> None:
        self.ray = ray
        self.place = place_of(config.store.path)
        self.begun = begun
        self.on_progress = on_progress
        self.stall_seconds = _stall_seconds(config)
        self.committed: set[int] = set()
        self.summaries: list[Summary] = []
        self.tallies: dict[str, Tally] = {}
        self.heard_of: dict[str, float] = {}
        self.started = self.moved = time.monotonic()
        # These are there in what was put in their place; their own commit records may be gone.
        self.replaced = effective({}, read_revisions(self.place), self.place).committed
        self.look()
        self.num_before = len(self.committed)

    @property
    def num_tokens(self) -> int:
        """Tokens of committed segments."""
        return sum(self.begun.segment_tokens[index] for index in self.committed)

    def follow(self, answers: Iterator[Summary | Failure]) -> None:
        """Take answers until the last one.

        Raises:
            GradsaeError: of a worker.
            EngineError: workers were lost for good, or nothing was committed for too long.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="answers")
        try:
            coming = pool.submit(next, answers, _END)
            while True:
                if not wait([coming], _POLL_SECONDS).done:
                    self.look()
                    self.expect_progress()
                    continue
                answer = coming.result()
                if answer is _END:
                    break
                self.take(answer)
                coming = pool.submit(next, answers, _END)
        except self.ray.exceptions.RayError as error:
            raise EngineError(
                f"Ray gave the run up: {error}. What was committed stays; run the same command again to go on."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self.look()

    def take(self, answer: Any) -> None:
        """Take one answer in, or raise the error that it brings."""
        if isinstance(answer, Failure):
            answer.error.add_note(f"in {answer.worker}")
            raise answer.error
        assert isinstance(answer, Summary)
        self.heard_of[answer.worker] = time.monotonic()
        self.summaries.append(answer)
        for site, tally in answer.tallies.items():
            self.tallies.setdefault(site, Tally()).add(tally)
        self.look()

    def look(self) -> None:
        """See what is committed by now."""
        first, size = self.begun.first_segment, len(self.begun.segment_tokens)
        there = self.replaced.union(find_records(self.place))
        committed = {index - first for index in there if first <= index < first + size}
        if len(committed) > len(self.committed):
            self.moved = time.monotonic()
        self.committed = committed
        self.tell_progress()

    def expect_progress(self) -> None:
        """Raise an error that says what is known of the workers, where nothing was committed for too long."""
        now = time.monotonic()
        if now - self.moved <= self.stall_seconds:
            return
        heard = "; ".join(f"{worker} {(now - at) / 60:.0f} min ago" for worker, at in self.heard_of.items())
        raise EngineError(
            f"nothing was committed for {(now - self.moved) / 60:.1f} minutes, at {len(self.committed)} of "
            f"{len(self.begun.segment_tokens)} segments. Last heard of: {heard or 'no worker'}; "
            f"{describe(self.ray)}. What was committed stays. A segment that takes longer needs a larger "
            "--stall-minutes; else look for lost machines, then run the same command again."
        )

    def tell_progress(self) -> None:
        """Report where the run is."""
        seconds = max(1e-9, time.monotonic() - self.started)
        self.on_progress(
            Progress(
                num_tokens=self.num_tokens,
                total_tokens=sum(self.begun.segment_tokens),
                num_segments=len(self.committed),
                total_segments=len(self.begun.segment_tokens),
                tokens_per_second=sum(summary.num_tokens for summary in self.summaries) / seconds,
                bytes_written=sum(summary.bytes_written for summary in self.summaries),
                l0={site: tally.l0 for site, tally in self.tallies.items()},
                fvu={site: tally.fvu for site, tally in self.tallies.items()},
            )
        )

    def report(self, place: Place) -> ExtractReport:
        """What the run did."""
        return ExtractReport(
            store=place,
            num_segments=sum(summary.num_segments for summary in self.summaries),
            num_skipped=self.num_before,
            num_tokens=sum(summary.num_tokens for summary in self.summaries),
            seconds=time.monotonic() - self.started,
            bytes_written=sum(summary.bytes_written for summary in self.summaries),
            l0={site: tally.l0 for site, tally in self.tallies.items()},
            fvu={site: tally.fvu for site, tally in self.tallies.items()},
        )
