"""The reading end of a store: committed segments only, any range of any array, and no torch."""

from functools import cached_property
from pathlib import Path
from typing import Any

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.store.commits import CommitRecord, find_records, missing_objects, read_record
from gradsae_fast.store.dictionary import read_decoder_norms, read_tokens
from gradsae_fast.store.exact import FOLDER, ExactDense, current, read_records
from gradsae_fast.store.facts import read_facts
from gradsae_fast.store.identity import RunRecord, read_run
from gradsae_fast.store.layout import Array
from gradsae_fast.store.segment import StoredSegment


def open_scores(path: str | Path) -> "ScoreStore":
    """Open a store for reading; it may be incomplete, and may be written to at the same time.

    What is committed is checked to be there with its length; contents are checked by their checksums when read.

    Raises:
        StoreError: missing, not a store, half-copied or damaged.
        FormatError: written by a newer release.
    """
    store = Path(path)
    try:
        record = read_run(store)
        commits = {index: read_record(found) for index, found in find_records(store).items()}
    except FileNotFoundError as error:
        raise StoreError(
            f"{store} lacks {error.filename}: it looks half-copied; copy the whole folder again"
        ) from error
    except PermissionError as error:
        raise StoreError(f"{store} cannot be read by this user ({error}); ask its owner for access") from error
    for index, commit in commits.items():
        faults = missing_objects(store, commit)
        if faults:
            key, what = faults[0]
            raise StoreError(
                f"{store}: segment {index} is damaged: its object {commit.folder}/{key} {what} "
                f"({len(faults)} such objects); copy the whole folder again, or run `gradsae repair` and extract again"
            )
    return ScoreStore(store, record, commits)


class ScoreStore:
    """The committed scores of one run; made by `open_scores`.

    Attributes:
        path: the store's folder.
        run: facts of the first start of the run.
        identity: what the run depends on.
        segments: committed segments, ascending.
        num_segments: segments of the plan, committed or not.
    """

    def __init__(self, path: Path, record: RunRecord, commits: dict[int, CommitRecord]) -> None:
        self.path = path
        self.run = record.run
        self.identity = record.identity
        self.num_segments = record.num_segments
        self.segments = [StoredSegment(path, index, commit) for index, commit in commits.items()]
        self._encoding = record.encoding
        self._facts: dict[str, Any] = next((c.facts for c in commits.values()), {"sites": [], "objectives": []})

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

    def __repr__(self) -> str:
        return (
            f"<ScoreStore {self.path}: {len(self.segments)} of {self.num_segments} segments, "
            f"{self.num_tokens:,} tokens of {self.num_documents:,} documents; "
            f"sites {', '.join(self.sites) or 'none'}; objectives {', '.join(self.objectives) or 'none'}>"
        )
