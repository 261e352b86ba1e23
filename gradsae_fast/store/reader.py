"""The reading end of a store: committed segments only, any range of any array, and no torch."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.store.ahead import read_files
from gradsae_fast.store.commits import SegmentSummary, find_records, read_record
from gradsae_fast.store.described import Described, read_described
from gradsae_fast.store.dictionary import read_decoder_norms, read_tokens
from gradsae_fast.store.exact import FOLDER, ExactDense, current, read_records
from gradsae_fast.store.facts import read_facts
from gradsae_fast.store.identity import RunRecord, read_run
from gradsae_fast.store.index import StoreIndex, read_index
from gradsae_fast.store.layout import Array
from gradsae_fast.store.segment import StoredSegment


def open_scores(path: str | Path, *, use_index: bool = True) -> "ScoreStore":
    """Open a store for reading; it may be incomplete, and may be written to at the same time.

    Nothing is read of a segment before it is asked for: that it is whole is seen then, by its checksums (see also
    `ScoreStore.check_objects` and `verify`).

    Args:
        path: the store's folder.
        use_index: look at the index, where the store has one of exactly its segments; answers are the same without.

    Raises:
        StoreError: missing, not a store, half-copied or damaged.
        FormatError: written by a newer release.
    """
    store = Path(path)
    try:
        record = read_run(store)
        found = find_records(store)
        index = (
            read_index(store, dict(zip(found, read_files(list(found.values())), strict=True))) if use_index else None
        )
        summaries = (
            {number: SegmentSummary.of(read_record(file)) for number, file in found.items()}
            if index is None
            else index.summaries
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"{store} lacks {error.filename}: it looks half-copied; copy the whole folder again"
        ) from error
    except PermissionError as error:
        raise StoreError(f"{store} cannot be read by this user ({error}); ask its owner for access") from error
    return ScoreStore(store, record, summaries, index)


class ScoreStore:
    """The committed scores of one run; made by `open_scores`.

    Attributes:
        path: the store's folder.
        run: facts of the first start of the run.
        identity: what the run depends on.
        segments: committed segments, ascending.
        num_segments: segments of the plan, committed or not.
        index: the index of exactly these segments, or None.
    """

    def __init__(
        self, path: Path, record: RunRecord, summaries: Mapping[int, SegmentSummary], index: StoreIndex | None
    ) -> None:
        self.path = path
        self.run = record.run
        self.identity = record.identity
        self.num_segments = record.num_segments
        self.index = index
        self.segments = [StoredSegment(path, number, summary) for number, summary in summaries.items()]
        self._encoding = record.encoding
        self._facts: dict[str, Any] = next((s.facts for s in summaries.values()), {"sites": [], "objectives": []})
        for segment in self.segments:
            segment.check_folder()

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
        """Whether every segment of the plan is committed."""
        return len(self.segments) == self.num_segments

    @cached_property
    def num_tokens(self) -> int:
        """Scored tokens of all committed segments."""
        return sum(segment.num_tokens for segment in self.segments)

    @cached_property
    def num_documents(self) -> int:
        """Documents of all committed segments."""
        return sum(segment.num_documents for segment in self.segments)

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
        records = current(read_records(self.path), self.segments)
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
            f"<ScoreStore {self.path}: {len(self.segments)} of {self.num_segments} segments, "
            f"{self.num_tokens:,} tokens of {self.num_documents:,} documents; "
            f"sites {', '.join(self.sites) or 'none'}; objectives {', '.join(self.objectives) or 'none'}>"
        )
