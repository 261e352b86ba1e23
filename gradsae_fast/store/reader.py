"""The reading end of a store: committed segments only, any range of any array, and no torch."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.store.format.layout import Array
from gradsae_fast.store.places.ahead import concurrently
from gradsae_fast.store.places.links import folders_in, refuse_links
from gradsae_fast.store.places.place import Place, place_of
from gradsae_fast.store.records.commits import SEGMENTS, SegmentSummary, find_records, read_record
from gradsae_fast.store.records.effective import SegmentRecords, effective
from gradsae_fast.store.records.facts import read_facts
from gradsae_fast.store.records.generations import Generation, read_generations, refuse_stray_segments
from gradsae_fast.store.records.identity import RunRecord, read_run
from gradsae_fast.store.records.revisions import find_revisions, read_revision, read_revisions
from gradsae_fast.store.segment import StoredSegment
from gradsae_fast.store.sidecars.described import Described, read_described
from gradsae_fast.store.sidecars.dictionary import read_decoder_norms, read_tokens
from gradsae_fast.store.sidecars.exact import FOLDER, ExactDense, read_records
from gradsae_fast.store.sidecars.index import StoreIndex, read_index, refuse_stale


def open_scores(path: str | Place, *, use_index: bool = True) -> "ScoreStore":
    """Open a store for reading; it may be incomplete, and may be written to at the same time.

    Nothing is read of a segment before it is asked for: that it is whole is seen then, by its checksums (see also
    `ScoreStore.check_objects` and `verify`).

    Args:
        path: the store's folder, or `s3://bucket/prefix`.
        use_index: look at the index, where the store has one of exactly its segments; answers are the same without.

    Raises:
        StoreError: missing, not a store, half-copied or damaged.
        FormatError: written by a newer release.
    """
    store = place_of(path)
    try:
        run = read_run(store)
        refuse_links(store)
        listed = _list(store)
        while True:
            try:
                return _open(store, run, *listed, use_index=use_index)
            except (StoreError, FileNotFoundError):
                # What was listed may have been replaced, or dropped, before it was read: then there is more to list.
                before, listed = listed, _list(store)
                if listed == before:
                    raise
    except FileNotFoundError as error:
        raise StoreError(
            f"{store} lacks {error.filename}: it looks half-copied; copy the whole folder again"
        ) from error
    except PermissionError as error:
        raise StoreError(f"{store} cannot be read by this user ({error}); ask its owner for access") from error


def _list(store: Place) -> tuple[dict[int, Place], list[Place]]:
    """List commit records, then revisions: what the latter replace has been committed before them."""
    return find_records(store), find_revisions(store)


def _open(
    store: Place, run: RunRecord, commits: dict[int, Place], revisions: list[Place], *, use_index: bool
) -> "ScoreStore":
    generations = read_generations(store, run)  # after the segments: a generation is there before its segments
    refuse_stray_segments(store, generations, list(commits))
    committed = frozenset(commits)
    index = None
    if use_index:
        index = read_index(store, commits, revisions)
    if index is None:
        records = dict(zip(commits, concurrently(store, read_record, commits.values()), strict=True))
        now = effective(records, [read_revision(path) for path in revisions], store)
        summaries = {number: SegmentSummary.of(record) for number, record in now.visible.items()}
        committed = now.committed
    else:
        summaries = index.summaries
        revised = effective({}, [read_revision(path) for path in revisions], store)
        refuse_stale(index, commits, revised, store)
        committed |= revised.committed
    return ScoreStore(store, generations, summaries, index, committed=committed, num_revisions=len(revisions))


class ScoreStore:
    """The committed scores of a run, and of the corpora that were appended to it; made by `open_scores`.

    Attributes:
        path: the store's folder.
        generations: the corpora of the store, the one that it began with first.
        run: facts of the first start of the run of generation 0.
        identity: what that run depends on; a later generation differs in its corpus only.
        segments: committed segments, ascending, as the store's revisions have left them.
        committed: numbers of the plans' segments that are there, each as it is or in one that was put in its place.
        num_revisions: how often segments were replaced, by `gradsae drop`, `compact` or `repair`.
        num_segments: segments of the plans of all generations, committed or not.
        index: the index of exactly these segments, or None.
    """

    def __init__(
        self,
        path: Place,
        generations: tuple[Generation, ...],
        summaries: Mapping[int, SegmentSummary],
        index: StoreIndex | None,
        *,
        committed: frozenset[int],
        num_revisions: int,
    ) -> None:
        self.path = path
        self.committed = committed
        self.num_revisions = num_revisions
        self.generations = generations
        self.run = generations[0].run
        self.identity = generations[0].identity
        self.num_segments = sum(generation.num_segments for generation in generations)
        self.index = index
        records = SegmentRecords(path)
        self.segments = [StoredSegment(path, number, summary, records) for number, summary in summaries.items()]
        self._encoding = generations[0].record.encoding
        self._facts: dict[str, Any] = next((s.facts for s in summaries.values()), {"sites": [], "objectives": []})
        self._check_folders()

    @property
    def sites(self) -> list[str]:
        """Names of the sites; empty before the first commit."""
        return [site["name"] for site in self._facts["sites"]]

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives; empty before the first commit."""
        return list(self._facts["objectives"])

    @property
    def precision_bits(self) -> int:
        """Bits of significand kept of activations and projections; 23 is exact."""
        return self._encoding.precision_bits

    @property
    def profile(self) -> str:
        """Codec profile, `compact` or `portable`."""
        return self._encoding.profile

    @property
    def aggregates_include_special(self) -> bool:
        """Whether stored sums count masked tokens too."""
        return self._encoding.aggregates_include_special

    @property
    def is_complete(self) -> bool:
        """Whether every segment of every generation's plan is committed."""
        return len(self.committed) == self.num_segments

    @cached_property
    def num_tokens(self) -> int:
        """Scored tokens of all committed segments."""
        return sum(segment.num_tokens for segment in self.segments)

    @cached_property
    def num_documents(self) -> int:
        """Documents of all committed segments."""
        return sum(segment.num_documents for segment in self.segments)

    def _check_folders(self) -> None:
        """Check that every segment's folder is there."""
        names = folders_in(self.path / SEGMENTS) if self.segments else set()
        for segment in self.segments:
            if segment.folder.name not in names:
                segment.check_folder()

    @cached_property
    def num_dropped(self) -> int:
        """Documents that were dropped from it, over all its revisions.

        Raises:
            StoreError: a revision is missing or damaged.
        """
        return sum(len(revision.dropped) for revision in read_revisions(self.path)) if self.num_revisions else 0

    def check_objects(self) -> None:
        """Look at every object of every committed segment: each must be there with its length.

        Raises:
            StoreError: one is not; names the first segment and object.
        """
        for segment in self.segments:
            fault = segment.half_copied()
            if fault is not None:
                raise fault

    def num_latents(self, site: str) -> int:
        """Return C, the latents of a site's SAE.

        Raises:
            QueryError: no such site.
        """
        for found in self._facts["sites"]:
            if found["name"] == site:
                return int(found["num_latents"])
        raise QueryError(f"{self.path} has no site {site!r}; it has {', '.join(self.sites) or 'none yet'}")

    def facts(self, name: str) -> dict[str, Any] | None:
        """Return a JSON sidecar of the run (`gate`, `plan`), or None.

        Raises:
            StoreError: it is damaged.
        """
        return read_facts(self.path, name)

    def exact_dense(self) -> ExactDense | None:
        """Return the exact effects of the dense latents, or None where no segment has any.

        Raises:
            StoreError: they are damaged.
            FormatError: written by a newer release.
        """
        records = read_records(self.path, self.segments)
        return ExactDense(self.path / FOLDER, self.segments, records) if records else None

    def token_strings(self) -> list[str] | None:
        """Return the string of every vocabulary id, or None where none was stored."""
        return read_tokens(self.path)

    def decoder_norms(self, site: str) -> Array | None:
        """Return the norms float32 [C] of a site's decoder rows, or None where none were stored."""
        return read_decoder_norms(self.path, site)

    def described(self, site: str) -> Described | None:
        """Return what a site's decoder rows say, or None before `gradsae describe STORE --all`.

        Raises:
            StoreError: it is damaged.
            FormatError: written by a newer release.
        """
        return read_described(self.path, site)

    def _repr_html_(self) -> str:
        from gradsae_fast.store.show import store_html  # it reads the certificate, which knows stores

        return store_html(self)

    def __repr__(self) -> str:
        return (
            f"<ScoreStore {self.path}: {len(self.committed)} of {self.num_segments} segments, "
            f"{self.num_tokens:,} tokens of {self.num_documents:,} documents; "
            f"sites {', '.join(self.sites) or 'none'}; objectives {', '.join(self.objectives) or 'none'}>"
        )
